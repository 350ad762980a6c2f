-- What a statement evaluates may change the settings or the role in its midst, and only what they are at its end is told.
-- So a mark of them is kept from its start on, as a row of the journal that nobody else can write.

-- Whether a statement may run a user's code. Of CREATE TABLE, which sessions send in masses for temporary tables, that
-- can be seen in a text: a keyword comes before each expression. What an SQL function runs is not in the context.
CREATE FUNCTION archiver.may_compute(tag text, origin text) RETURNS bool LANGUAGE sql STABLE AS $may$
    SELECT tag IN (__COMPUTING__) AND NOT current_setting('transaction_read_only')::bool
       AND (tag <> 'CREATE TABLE' OR starts_with(origin, 'SQL function "')
            OR octet_length(source) > __TEXT_LIMIT__
            OR CASE WHEN octet_length(source) <= __TEXT_LIMIT__
                    THEN source ~* E'\\m(default|check|values|generated|exclude|partition)\\M' END)
      FROM (SELECT CASE WHEN starts_with(origin, 'SQL statement "') THEN origin ELSE current_query() END) AS text (source)
$may$;

-- A statement that commits on its way (CREATE INDEX CONCURRENTLY) ends in another transaction than it started in.
CREATE FUNCTION archiver.session_key(origin text) RETURNS uuid LANGUAGE sql STABLE AS $key$
    SELECT md5(concat_ws(' ', 'session', pg_backend_pid(), statement_timestamp(), md5(origin)))::uuid
$key$;

-- CREATE SCHEMA changes by itself which schemas are found.
CREATE FUNCTION archiver.session_mark() RETURNS text LANGUAGE sql STABLE AS $mark$
    SELECT md5((current_setting('archiver.session')::jsonb - 'schemas')::text)
$mark$;

-- A row that is there already was kept by a statement before it in the same text that ended read-only, as only a temporary
-- table's may, and was not counted: which statement this one is nobody knows.
CREATE FUNCTION archiver.keep_session(tag text, origin text) RETURNS void LANGUAGE plpgsql AS $keep$
BEGIN
    IF archiver.may_compute(tag, origin) THEN
        INSERT INTO archiver.journal (id, kind, key, content)
        VALUES (archiver.session_key(origin), 'memory', pg_current_xact_id()::text, archiver.session_mark())
        ON CONFLICT (id) DO UPDATE SET content = 'uncounted';
    END IF;
END
$keep$;

-- Whether it is another session now; so it is where nothing was kept. ON CONFLICT finds the row: see archiver.remember.
CREATE FUNCTION archiver.session_changed(tag text, origin text) RETURNS bool LANGUAGE plpgsql AS $changed$
DECLARE
    kept record;
BEGIN
    IF NOT archiver.may_compute(tag, origin) THEN
        RETURN false;
    END IF;
    INSERT INTO archiver.journal AS j (id, kind, key, content)
    VALUES (archiver.session_key(origin), 'memory', pg_current_xact_id()::text, '')
    ON CONFLICT (id) DO UPDATE SET content = j.content
    RETURNING ctid, content INTO kept;
    DELETE FROM archiver.journal WHERE ctid = kept.ctid;
    RETURN kept.content <> archiver.session_mark();
END
$changed$;
