-- What a rewrite computed: rows that the stream does not hold, and replay could not compute. note_rewrite remembers
-- the tables while a statement runs, as rows of the journal that nobody else can write, and record_rewritten writes
-- their rows when it has ended.

-- Reasons: 1 persistence, 2 a default that is not kept in the catalog, 4 a column's type, 8 access method (tablecmds.h).
-- Only what is known to be pure gives the same rows when it is replayed: some conversions, and the default of a new column
-- that calls nothing but immutable functions. That of a column which was there before is not evaluated.
CREATE FUNCTION archiver.note_rewrite(rewritten oid, reason int, origin text) RETURNS void LANGUAGE plpgsql AS $note$
DECLARE
    needed bool := reason & 1 <> 0;
    words jsonb;
BEGIN
    IF (SELECT relpersistence = 't' OR relkind <> 'r' FROM pg_class WHERE oid = rewritten) THEN
        RETURN;
    END IF;
    IF reason & 6 <> 0 THEN
        words := archiver.text_of(archiver.head_of(origin), origin);
        needed := needed
               OR (reason & 2 <> 0 OR (words ->> 'adds')::bool) AND archiver.has_unstable_default(rewritten)
               OR (words ->> 'adds')::bool AND (words ->> 'moment')::bool
               OR reason & 4 <> 0 AND ((words ->> 'using')::bool AND archiver.computes(archiver.wording(words, origin))
                                       OR archiver.converts(rewritten, (words ->> 'using')::bool)
                                       OR archiver.has_unstable_cast());
    END IF;
    IF needed THEN
        PERFORM archiver.remember('rewritten', concat_ws(' ', archiver.recalled('rewritten'),
                                                         md5(origin) || ':' || rewritten));
    END IF;
END
$note$;

-- A snapshot does not list one's own transaction, nor its subtransactions, as in progress: as soon as a later one of
-- somebody else has ended, they look as if they had, too. Of visible rows, though, only one's own are in progress.
CREATE FUNCTION archiver.is_ours(written xid) RETURNS bool LANGUAGE plpgsql STABLE AS $ours$
DECLARE
    top bigint := pg_current_xact_id()::text::bigint;
    ahead bigint := (written::text::bigint - top) & 4294967295;
BEGIN
    RETURN ahead < 2147483648 AND pg_xact_status((top + ahead)::text::xid8) = 'in progress';
EXCEPTION WHEN invalid_parameter_value THEN  -- a frozen row's, of before the numbers wrapped around
    RETURN false;
END
$ours$;

-- Of the columns that this very transaction wrote. The value of a domain is computed anew for each row.
CREATE FUNCTION archiver.has_unstable_default(rewritten oid) RETURNS bool LANGUAGE sql STABLE AS $unstable$
    SELECT EXISTS (
        SELECT FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
          LEFT JOIN pg_type t ON t.oid = a.atttypid
         WHERE a.attrelid = rewritten AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
           AND archiver.is_ours(a.xmin)
           AND (a.attidentity <> '' OR t.typdefaultbin IS NOT NULL OR d.oid IS NOT NULL AND t.typtype = 'd' OR EXISTS (
               SELECT FROM regexp_matches(d.adbin::text, ':(?:op)?funcid ([0-9]+)', 'g') AS f
                 JOIN pg_proc p ON p.oid = f[1]::oid WHERE p.provolatile <> 'i')
            OR EXISTS (
               SELECT FROM regexp_matches(d.adbin::text, '{([A-Z]+)', 'g') AS node
                WHERE node[1] <> ALL ('{CONST,FUNCEXPR,OPEXPR,RELABELTYPE,BOOLEXPR,NULLTEST,CASE,WHEN,ARRAYEXPR,COALESCE}'))))
$unstable$;

-- The types before a statement: a function that is STABLE sees the catalog under the snapshot which the statement began
-- with, as long as the event trigger itself calls it. Of a rewritten table all of its columns', else those of columns that hold
-- OIDs and show names.
CREATE FUNCTION archiver.note_types() RETURNS event_trigger LANGUAGE plpgsql STABLE SECURITY DEFINER
    __PINNED__ AS $types$
DECLARE
    before pg_snapshot;
    noted jsonb;
BEGIN
    before := pg_current_snapshot();  -- an error where there is none
    IF tg_event = 'table_rewrite' THEN
        noted := (SELECT jsonb_object_agg(attnum, atttypid::int8) FROM pg_attribute
                   WHERE attrelid = pg_event_trigger_table_rewrite_oid() AND attnum > 0 AND NOT attisdropped);
    ELSE
        noted := (SELECT jsonb_object_agg(concat(a.attrelid, ' ', a.attnum), a.atttypid::int8)
                    FROM pg_event_trigger_ddl_commands() d JOIN pg_attribute a ON a.attrelid = d.objid
                    JOIN pg_type t ON t.oid = a.atttypid
                   WHERE d.classid = 'pg_class'::regclass AND a.attnum > 0 AND NOT a.attisdropped
                     AND archiver.shows_names(t.oid, t.typbasetype));
    END IF;
    PERFORM set_config('archiver.types', coalesce(noted, '{}')::text, true);
EXCEPTION WHEN OTHERS THEN
    PERFORM set_config('archiver.types', SQLERRM, true);  -- which is no JSON: whoever reads it records a loss
END
$types$;

-- regproc, regprocedure, regoper, regoperator, regclass, regtype, regconfig, regdictionary, regnamespace, regrole,
-- regcollation, regdatabase and their arrays (pg_type.dat); not every version has all of them.
CREATE FUNCTION archiver.shows_names(type oid, base oid) RETURNS bool LANGUAGE sql IMMUTABLE AS $names$
    SELECT coalesce(nullif(base, 0), type) = ANY ('{24,2202,2203,2204,2205,2206,3734,3769,4089,4096,4191,8326,'
        '1008,2207,2208,2209,2210,2211,3735,3770,4090,4097,4192,8327}'::oid[])
$names$;

-- Whether one type's values always become the same of another. A moment is none from text, which may say 'now'.
CREATE FUNCTION archiver.is_pure(old oid, new oid) RETURNS bool LANGUAGE sql STABLE AS $pure$
    SELECT old = ANY (plain || times) AND (new = ANY (plain) OR new = ANY (times) AND old = ANY (times))
      FROM (SELECT '{bool,int2,int4,int8,numeric,float4,float8,text,varchar,bpchar,uuid,bytea,json,jsonb}'::regtype[]::oid[],
                   '{date,time,timestamp,timestamptz,interval}'::regtype[]::oid[]) AS known (plain, times)
$pure$;

-- Of the columns whose type a statement changes, and of those that its USING may name.
CREATE FUNCTION archiver.converts(rewritten oid, written bool) RETURNS bool LANGUAGE plpgsql STABLE AS $converts$
DECLARE
    noted jsonb := current_setting('archiver.types');
BEGIN
    RETURN noted = '{}' OR EXISTS (
        SELECT FROM jsonb_each_text(noted) AS old (num, type)
          LEFT JOIN pg_attribute a ON a.attrelid = rewritten AND a.attnum = old.num::int2
         WHERE a.atttypid <> old.type::oid AND NOT a.attisdropped AND NOT archiver.is_pure(old.type::oid, a.atttypid)
            OR written AND archiver.shows_names(old.type::oid, (SELECT typbasetype FROM pg_type WHERE oid = old.type::oid)));
END
$converts$;

-- OIDs are others at a target. Where a column that shows them as names begins or ceases to, which may rewrite nothing,
-- the rows travel; children have the types of their parents.
CREATE FUNCTION archiver.renamed_tables() RETURNS SETOF oid LANGUAGE plpgsql STABLE AS $renamed$
DECLARE
    noted jsonb := current_setting('archiver.types');
    altered oid[] := ARRAY(
        SELECT DISTINCT a.attrelid FROM pg_event_trigger_ddl_commands() d JOIN pg_attribute a ON a.attrelid = d.objid
          JOIN pg_type t ON t.oid = a.atttypid
         WHERE d.classid = 'pg_class'::regclass AND a.attnum > 0 AND NOT a.attisdropped
           AND (noted ->> concat(a.attrelid, ' ', a.attnum) <> a.atttypid::text
             OR noted ->> concat(a.attrelid, ' ', a.attnum) IS NULL
                AND archiver.shows_names(t.oid, t.typbasetype)));
BEGIN
    IF altered <> '{}' THEN
        RETURN QUERY SELECT archiver.and_children(altered);
    END IF;
END
$renamed$;

CREATE FUNCTION archiver.and_children(tables oid[]) RETURNS SETOF oid LANGUAGE sql STABLE AS $children$
    WITH RECURSIVE meant AS (
        SELECT unnest(tables) AS rel
        UNION SELECT i.inhrelid FROM meant m JOIN pg_inherits i ON i.inhparent = m.rel
    )
    SELECT c.oid FROM meant JOIN pg_class c ON c.oid = meant.rel WHERE c.relkind = 'r' AND c.relpersistence <> 't'
$children$;

-- A default that was evaluated once for each partition, and came out otherwise each time.
CREATE FUNCTION archiver.differing_tables(tables oid[], missing jsonb) RETURNS SETOF oid LANGUAGE sql STABLE AS $differing$
    SELECT DISTINCT a.attrelid FROM pg_attribute a
     WHERE a.attrelid IN (SELECT archiver.and_children(tables))
       AND a.attname::text IN (SELECT name FROM jsonb_each(missing) AS m (name, said) WHERE (said ->> 'differ')::bool)
       AND a.atthasmissing AND archiver.is_ours(a.xmin)
$differing$;

-- Whether a USING is more than a column, or its cast to a type that a keyword names: who calls what is not read there.
CREATE FUNCTION archiver.computes(source text) RETURNS bool LANGUAGE sql STABLE AS $computes$
    SELECT (SELECT count(*) FROM regexp_matches(source, E'\\musing\\M', 'gi'))
        <> (SELECT count(*) FROM regexp_matches(source, E'\\musing\\s+(?!current_|localtime|session_user|system_user|user\\M)(?:\\w+|"[^"]+")(?:\\s*::\\s*(?:smallint|integer|int'
            '|bigint|real|float|double\\s+precision|numeric|decimal|boolean|varchar|char|character|character\\s+varying'
            ')(?:\\s*[(][0-9, ]+[)])?)?\\s*(?=,|;|"?$|"\\n)', 'gi'))
$computes$;

-- A cast of somebody's is called without a USING, too.
CREATE FUNCTION archiver.has_unstable_cast() RETURNS bool LANGUAGE sql STABLE AS $cast$
    SELECT EXISTS (SELECT FROM pg_cast c JOIN pg_proc p ON p.oid = c.castfunc
                    WHERE c.oid >= 16384 AND p.provolatile <> 'i')
$cast$;

-- The tables that were noted for a statement: one that runs inside of another stands elsewhere. Where an extension's
-- script stands is not told in every version.
CREATE FUNCTION archiver.take_rewritten(tag text, origin text) RETURNS SETOF oid LANGUAGE plpgsql AS $take$
DECLARE
    noted text[] := string_to_array(archiver.recalled('rewritten'), ' ');
BEGIN
    IF noted IS NOT NULL THEN
        PERFORM archiver.remember('rewritten', array_to_string(ARRAY(
            SELECT each FROM unnest(noted) AS each WHERE NOT (tag ~ 'EXTENSION$' OR starts_with(each, md5(origin)))), ' '));
        RETURN QUERY SELECT DISTINCT substr(each, 34)::oid FROM unnest(noted) AS each
                      WHERE tag ~ 'EXTENSION$' OR starts_with(each, md5(origin));
    END IF;
END
$take$;

CREATE FUNCTION archiver.record_rewritten(tag text, origin text, tables oid[], missing jsonb) RETURNS void
LANGUAGE plpgsql AS $rewritten$
DECLARE
    rels oid[] := ARRAY(SELECT archiver.take_rewritten(tag, origin));
    rel oid;
BEGIN
    IF tag = 'ALTER TABLE' THEN
        rels := rels || ARRAY(SELECT archiver.renamed_tables());
        IF missing @? '$.*.differ' THEN
            rels := rels || ARRAY(SELECT archiver.differing_tables(tables, missing));
        END IF;
    END IF;
    FOR rel IN SELECT DISTINCT unnest(rels) LOOP
        IF NOT archiver.is_excluded(rel) THEN  -- an excluded table's rows are not archived
            PERFORM archiver.record_rows(rel);
        END IF;
    END LOOP;
END
$rewritten$;
