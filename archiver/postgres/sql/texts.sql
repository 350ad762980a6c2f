-- The text that holds the statement which fired an event.

-- What of a text must be known for each of its statements, and costs a look at all of it.
-- likes: the names behind LIKE, which may copy all that a table has and leaves no trace of what it copied.
-- moment: whether a literal may be a moment: 'now', 'today' and the like become constants when DDL is run
-- (postgresql.org/docs/18/datatype-datetime.html, "Special Values"). Comments and quoted names are matched so that an
-- apostrophe in them begins no literal. beside: whether it may have become something else than a default.
CREATE FUNCTION archiver.words_of(source text) RETURNS jsonb LANGUAGE sql STABLE AS $words$
    SELECT jsonb_build_object(
        'adds', source ~* E'\\madd\\M',
        'using', source ~* E'\\musing\\M',
        'atomic', source ~* E'\\matomic\\M',
        'copies', source ~* E'\\m(like|partition)\\M',
        'likes', CASE WHEN source ~* E'\\mlike\\M' THEN (
            SELECT jsonb_agg(DISTINCT coalesce(lower(found[1]), replace(found[2], '""', '"')))
              FROM regexp_matches(source,
                  E'\\mlike\\s+(?:pg_temp\\w*\\s*[.]\\s*)?(?:(\\w+)|"((?:[^"]|"")+)")', 'gi') AS found) END,
        'moment', source ~* E'\\m(now|today|tomorrow|yesterday)\\M' AND EXISTS (
            SELECT FROM regexp_matches(regexp_replace(source, '^SQL statement "', ''),
                        E'(--[^\\n]*|/[*]([^*]|[*]+[^*/])*[*]+/|"[^"]*"|[$][a-z_]*[$][^$]*[$][a-z_]*[$]'
                        '|e\x27([^\x27\\\\]|\\\\.|\x27\x27)*\x27|\x27([^\x27]|\x27\x27)*\x27)', 'gi') AS token
             WHERE token[1] !~ '^[-/"]' AND token[1] ~* E'\\m(now|today|tomorrow|yesterday)\\M'),
        'bounds', source ~* E'\\mvalues\\M',
        'beside', source ~* E'\\m(check|exclude|using)\\M'
               OR source ~* E'\\mas\\s*[(][^,]*\\m(now|today|tomorrow|yesterday)\\M')
$words$;

-- Where a statement stands: nested in a function, by whose line of context (`source`, of an SQL function's), and a mark of
-- its text. It is asked for each statement, temporary tables' too, and so does no more than find out whether the text
-- holds several; of what is too long to travel not even that: no pattern can be looked for in a text of 256 MiB.
CREATE FUNCTION archiver.head_of(origin text) RETURNS jsonb LANGUAGE plpgsql AS $head$
DECLARE
    routine text := substring(left(origin, 300) FROM E'^SQL function "[^\\n]*" statement [0-9]+');
    nested bool := starts_with(origin, 'SQL function "') OR starts_with(origin, 'SQL statement "');
    source text := CASE WHEN nested THEN origin ELSE current_query() END;
BEGIN
    RETURN jsonb_build_object(
        'nested', nested, 'source', routine,
        'mark', CASE WHEN routine IS NOT NULL THEN md5(regexp_replace(routine, ' statement [0-9]+$', ''))
                     WHEN nested THEN md5(origin) ELSE octet_length(current_query())::text END,
        'several', routine IS NULL AND CASE WHEN octet_length(source) > __TEXT_LIMIT__ THEN true
                                            ELSE source ~ E';\\s*\\S' END);
END
$head$;

-- A text of several statements travels once in each transaction, as a row of its own to which its events refer. That
-- row stays in the table while the text runs: that it is there is all that is believed of what the session remembers.
CREATE FUNCTION archiver.text_of(head jsonb, origin text) RETURNS jsonb LANGUAGE plpgsql AS $text$
DECLARE
    xact text := pg_current_xact_id()::text || ' ';
    routine text := head ->> 'source';
    nested bool := head ->> 'nested';
    source text := CASE WHEN nested THEN origin ELSE current_query() END;
    wanted text := xact || extract(epoch FROM statement_timestamp()) || ' ' || (head ->> 'mark');
    slot text := CASE WHEN nested THEN 'archiver.nested_text' ELSE 'archiver.text' END;
    kept tid := substring(current_setting(slot, true) FROM E'^\\(\\d{1,9},\\d{1,4}\\)$');
    sent record;
    bodies jsonb;
    words jsonb;
BEGIN
    IF starts_with(origin, 'SQL function "') THEN
        bodies := archiver.bodies_of(routine);
        IF jsonb_array_length(bodies) IS DISTINCT FROM 1
           OR archiver.recalled(concat('routine ', archiver.name_of(routine))) = statement_timestamp()::text THEN
            RAISE EXCEPTION 'which function ran is not known';  -- a loss: another's text must not stand for it
        END IF;
        wanted := concat(wanted, ' ', md5(bodies::text));
    END IF;
    IF kept IS NOT NULL THEN
        SELECT id, about INTO sent FROM archiver.journal WHERE ctid = kept AND key = wanted;
        IF FOUND THEN
            RETURN head || sent.about::jsonb || jsonb_build_object('text', sent.id);
        END IF;
        DELETE FROM archiver.journal WHERE ctid = kept AND starts_with(key, xact);
    END IF;
    IF octet_length(source) > __TEXT_LIMIT__ THEN
        RAISE EXCEPTION 'its text is longer than % bytes', __TEXT_LIMIT__;
    END IF;
    words := archiver.words_of(concat_ws(' ', CASE WHEN routine IS NULL THEN source END,
        (SELECT string_agg(body, ' ') FROM jsonb_array_elements_text(bodies) AS body)));
    IF routine IS NULL AND NOT (head ->> 'several')::bool THEN
        RETURN head || words || jsonb_build_object('source', source);
    END IF;
    INSERT INTO archiver.journal (kind, key, about, content)
    VALUES ('text', wanted, words::text, CASE WHEN routine IS NULL THEN jsonb_build_object('source', source)
                                              ELSE jsonb_build_object('bodies', bodies) END::text)
    RETURNING id, ctid INTO sent;
    PERFORM set_config(slot, sent.ctid::text, true);
    RETURN head || words || jsonb_build_object('text', sent.id);
END
$text$;

CREATE FUNCTION archiver.name_of(routine text) RETURNS text LANGUAGE sql IMMUTABLE AS $name$
    SELECT substring(routine, E'^SQL function "([^\\n]*)" statement [0-9]+')
$name$;

-- Only its name is told, without a schema. What stands in the temporary schemas of other sessions cannot be meant.
CREATE FUNCTION archiver.bodies_of(routine text) RETURNS jsonb LANGUAGE sql STABLE AS $bodies$
    SELECT jsonb_agg(DISTINCT p.prosrc) FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
     WHERE NOT pg_is_other_temp_schema(p.pronamespace) AND l.lanname = 'sql' AND p.proname = archiver.name_of(routine)
$bodies$;

-- A function that changes, or goes, while an SQL function of its name runs may not be the one that ran.
CREATE FUNCTION archiver.note_routines(names text[], origin text) RETURNS void LANGUAGE plpgsql AS $routines$
BEGIN
    IF (origin IS NULL OR strpos(origin, 'SQL function "') > 0) AND NOT current_setting('transaction_read_only')::bool THEN
        PERFORM archiver.remember(concat('routine ', name), statement_timestamp()::text)
           FROM (SELECT DISTINCT unnest(names) AS name) AS changed;
    END IF;
END
$routines$;

-- What stands in a text, all of it, for what must be looked for where a statement needs it.
CREATE FUNCTION archiver.wording(words jsonb, origin text) RETURNS text LANGUAGE sql STABLE AS $wording$
    SELECT CASE WHEN words ->> 'source' ~ '^SQL function "'
                THEN (SELECT string_agg(body, ' ') FROM jsonb_array_elements_text(
                          archiver.bodies_of(words ->> 'source')) AS body)
                WHEN (words ->> 'nested')::bool THEN origin ELSE current_query() END
$wording$;

-- What a transaction must remember, where no session can change it: a row of the journal, undone by what undoes the
-- statement. ON CONFLICT finds it by its key; a query would make serializable transactions depend on each other.
CREATE FUNCTION archiver.key_of(what text) RETURNS uuid LANGUAGE sql STABLE AS $key$
    SELECT md5(concat_ws(' ', pg_current_xact_id(), what))::uuid
$key$;

CREATE FUNCTION archiver.remember(what text, value text) RETURNS void LANGUAGE sql AS $remember$
    INSERT INTO archiver.journal (id, kind, key, content)
    VALUES (archiver.key_of(what), 'memory', pg_current_xact_id()::text, value)
    ON CONFLICT (id) DO UPDATE SET content = excluded.content
$remember$;

CREATE FUNCTION archiver.recalled(what text) RETURNS text LANGUAGE plpgsql AS $recalled$
DECLARE
    kept record;
BEGIN
    INSERT INTO archiver.journal AS j (id, kind, key, content)
    VALUES (archiver.key_of(what), 'memory', pg_current_xact_id()::text, '')
    ON CONFLICT (id) DO UPDATE SET content = j.content
    RETURNING ctid, content INTO kept;
    IF kept.content = '' THEN
        DELETE FROM archiver.journal WHERE ctid = kept.ctid;
    END IF;
    RETURN nullif(kept.content, '');
END
$recalled$;

-- The place of a statement among those of its text that fired events in this transaction and were not rolled back.
CREATE FUNCTION archiver.place_of(head jsonb, event text, tag text) RETURNS int LANGUAGE plpgsql AS $place$
DECLARE
    told text := concat_ws(' ', extract(epoch FROM statement_timestamp()), head ->> 'mark');
    what text := CASE WHEN (head ->> 'nested')::bool THEN 'place ' || (head ->> 'mark') ELSE 'place' END;
    counted text;
    written tid;
BEGIN
    IF NOT (head ->> 'several')::bool OR current_setting('transaction_read_only')::bool THEN
        RETURN 1;  -- it is alone, or the number of the statement is told, or it is of a temporary table
    END IF;
    INSERT INTO archiver.journal AS j (id, kind, key, content)
    VALUES (archiver.key_of(what), 'memory', pg_current_xact_id()::text, archiver.counted('', told, event, tag))
    ON CONFLICT (id) DO UPDATE SET content = archiver.counted(j.content, told, event, tag)
    RETURNING content, ctid INTO counted, written;
    IF counted LIKE '% {1}' THEN
        PERFORM archiver.forget_others();
    END IF;
    PERFORM set_config('archiver.place', written::text, false);
    RETURN (regexp_match(counted, '{([0-9]+)'))[1];
END
$place$;

-- The row that this session left behind in an earlier transaction is of no use to anybody. Under a snapshot that is older
-- than the sweep of a base snapshot it cannot be deleted without an error.
CREATE FUNCTION archiver.forget_others() RETURNS void LANGUAGE plpgsql AS $forget$
DECLARE
    kept tid := substring(current_setting('archiver.place', true) FROM E'^\\(\\d{1,9},\\d{1,4}\\)$');
BEGIN
    IF kept IS NOT NULL AND current_setting('transaction_isolation') = 'read committed' THEN
        DELETE FROM archiver.journal WHERE ctid = (
            SELECT ctid FROM archiver.journal WHERE ctid = kept AND kind = 'memory'
               AND key <> pg_current_xact_id()::text FOR UPDATE SKIP LOCKED);
    END IF;
END
$forget$;

-- Of an extension's script, whose events come between its start and its end, nothing is counted.
CREATE FUNCTION archiver.counted(said text, told text, event text, tag text) RETURNS text LANGUAGE plpgsql
AS $counted$
DECLARE
    places int[] := '{0}';
BEGIN
    IF starts_with(said, told || ' ') THEN
        places := substr(said, length(told) + 2);
    END IF;
    IF event = 'ddl_command_start' THEN
        places := places[1] || places;
    ELSE
        IF tag IN ('CREATE EXTENSION', 'ALTER EXTENSION') AND cardinality(places) > 1 THEN
            places := places[2:];
        END IF;
        places[1] := places[1] + 1;
    END IF;
    RETURN concat_ws(' ', told, places::text);
END
$counted$;
