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
    written tid;
BEGIN
    IF (SELECT relpersistence = 't' OR relkind <> 'r' FROM pg_class WHERE oid = rewritten) THEN
        RETURN;
    END IF;
    IF reason & 6 <> 0 THEN
        words := archiver.text_of(archiver.head_of(origin), origin);
        needed := needed
               OR (reason & 2 <> 0 OR (words ->> 'adds')::bool) AND archiver.has_unstable_default(rewritten)
               OR reason & 4 <> 0 AND (words ->> 'using')::bool
                  AND archiver.calls_volatile(archiver.wording(words, origin));
    END IF;
    IF needed THEN
        INSERT INTO archiver.journal (kind, key, content)
        VALUES ('rewrite', pg_current_xact_id()::text, rewritten::text) RETURNING ctid INTO written;
        PERFORM set_config('archiver.rewritten', concat_ws(' ',
            nullif(current_setting('archiver.rewritten', true), ''), written), true);
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

CREATE FUNCTION archiver.calls_volatile(source text) RETURNS bool LANGUAGE sql STABLE AS $calls$
    SELECT source ~* E'\\m(current_|localtime|session_user|user\\M|reg[a-z]+\\M)' OR EXISTS (
        SELECT FROM regexp_matches(source, E'([[:alnum:]_$]+)"?\\s*\\(', 'g') AS f
          JOIN pg_proc p ON p.proname IN (f[1], lower(f[1])) WHERE p.provolatile <> 'i')
$calls$;

-- The tables that were noted. What the session remembers is where the notes stand; that they are ours, they say.
CREATE FUNCTION archiver.take_rewritten() RETURNS SETOF oid LANGUAGE plpgsql AS $take$
DECLARE
    noted text := nullif(current_setting('archiver.rewritten', true), '');
BEGIN
    IF noted IS NOT NULL THEN
        PERFORM set_config('archiver.rewritten', '', true);
        RETURN QUERY WITH taken AS (
            DELETE FROM archiver.journal
             WHERE ctid = ANY (ARRAY(SELECT (place[1])::tid
                                       FROM regexp_matches(noted, E'(\\(\\d{1,9},\\d{1,4}\\))', 'g') AS place))
               AND kind = 'rewrite' AND key = pg_current_xact_id()::text RETURNING content
        ) SELECT DISTINCT content::oid FROM taken;
    END IF;
END
$take$;

CREATE FUNCTION archiver.record_rewritten() RETURNS void LANGUAGE plpgsql AS $rewritten$
DECLARE
    rel oid;
BEGIN
    FOR rel IN SELECT archiver.take_rewritten() LOOP
        IF NOT archiver.is_excluded(rel) THEN  -- an excluded table's rows are not archived
            PERFORM archiver.record_rows(rel);
        END IF;
    END LOOP;
END
$rewritten$;
