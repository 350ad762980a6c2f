-- What a rewrite computed: rows that the stream does not hold, and replay could not compute. note_rewrite remembers
-- the tables while a statement runs, as rows of the journal that nobody else can write, and record_rewritten writes
-- their rows when it has ended.

-- Reasons: 1 persistence, 2 a default that is not kept in the catalog, 4 a column's type, 8 access method (tablecmds.h).
-- A USING, or the default of a new column, that calls nothing but immutable functions gives the same rows when it is
-- replayed. That of a column which was there before is not evaluated.
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
               OR reason & 4 <> 0 AND ((words ->> 'using')::bool AND archiver.computes(archiver.wording(words, origin))
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

-- Of the columns that this very transaction wrote.
CREATE FUNCTION archiver.has_unstable_default(rewritten oid) RETURNS bool LANGUAGE sql STABLE AS $unstable$
    SELECT EXISTS (
        SELECT FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
          LEFT JOIN pg_type t ON t.oid = a.atttypid
         WHERE a.attrelid = rewritten AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
           AND archiver.is_ours(a.xmin)
           AND (a.attidentity <> '' OR t.typdefaultbin IS NOT NULL OR EXISTS (
               SELECT FROM regexp_matches(d.adbin::text, ':(?:op)?funcid ([0-9]+)', 'g') AS f
                 JOIN pg_proc p ON p.oid = f[1]::oid WHERE p.provolatile <> 'i')
            OR d.adbin::text ~ 'NEXTVALUEEXPR|SQLVALUEFUNCTION'))
$unstable$;

-- Whether a USING is more than a column, or its cast to a type that a keyword names: who calls what is not read there.
CREATE FUNCTION archiver.computes(source text) RETURNS bool LANGUAGE sql STABLE AS $computes$
    SELECT (SELECT count(*) FROM regexp_matches(source, E'\\musing\\M', 'gi'))
        <> (SELECT count(*) FROM regexp_matches(source, E'\\musing\\s+(?!current_|localtime|session_user|system_user|user\\M)(?:\\w+|"[^"]+")(?:\\s*::\\s*(?:smallint|integer|int'
            '|bigint|real|float|double\\s+precision|numeric|decimal|boolean|varchar|char|character|character\\s+varying'
            '|timestamp|time|interval)(?:\\s*[(][0-9, ]+[)])?)?\\s*(?=,|;|"?$|"\\n)', 'gi'))
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

CREATE FUNCTION archiver.record_rewritten(tag text, origin text) RETURNS void LANGUAGE plpgsql AS $rewritten$
DECLARE
    rel oid;
BEGIN
    FOR rel IN SELECT archiver.take_rewritten(tag, origin) LOOP
        IF NOT archiver.is_excluded(rel) THEN  -- an excluded table's rows are not archived
            PERFORM archiver.record_rows(rel);
        END IF;
    END LOOP;
END
$rewritten$;
