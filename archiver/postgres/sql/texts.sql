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
        'beside', source ~* E'\\m(check|for\\s+values|exclude|using)\\M'
               OR source ~* E'\\mas\\s*[(][^,]*\\m(now|today|tomorrow|yesterday)\\M')
$words$;

-- Where a statement stands: nested in a function, by whose line of context (`source`, of an SQL function's), and a mark of
-- its text. It is asked for each statement, temporary tables' too, and so does no more than find out whether the text
-- holds several.
CREATE FUNCTION archiver.head_of(origin text) RETURNS jsonb LANGUAGE plpgsql AS $head$
DECLARE
    routine text := substring(origin FROM E'^SQL function "[^\\n]*" statement [0-9]+');
    nested bool := routine IS NOT NULL OR starts_with(origin, 'SQL statement "');
BEGIN
    RETURN jsonb_build_object(
        'nested', nested, 'source', routine,
        'mark', CASE WHEN routine IS NOT NULL THEN md5(regexp_replace(routine, ' statement [0-9]+$', ''))
                     WHEN nested THEN md5(origin) ELSE octet_length(current_query())::text END,
        'several', routine IS NULL AND CASE WHEN nested THEN origin ELSE current_query() END ~ E';\\s*\\S');
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
    IF routine IS NOT NULL THEN
        bodies := archiver.bodies_of(routine);
    END IF;
    IF starts_with(origin, 'SQL function "') AND jsonb_array_length(bodies) IS DISTINCT FROM 1 THEN
        RAISE EXCEPTION 'which function ran is not known';  -- a loss: another's text must not stand for it
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

-- Only its name is told, without a schema. What stands in the temporary schemas of other sessions cannot be meant.
CREATE FUNCTION archiver.bodies_of(routine text) RETURNS jsonb LANGUAGE sql STABLE AS $bodies$
    SELECT jsonb_agg(DISTINCT p.prosrc) FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
     WHERE NOT pg_is_other_temp_schema(p.pronamespace) AND l.lanname = 'sql' AND p.proname = substring(routine, E'^SQL function "([^\\n]*)" statement [0-9]+')
$bodies$;

-- What stands in a text, all of it, for what must be looked for where a statement needs it.
CREATE FUNCTION archiver.wording(words jsonb, origin text) RETURNS text LANGUAGE sql STABLE AS $wording$
    SELECT CASE WHEN words ->> 'source' ~ '^SQL function "'
                THEN (SELECT string_agg(body, ' ') FROM jsonb_array_elements_text(
                          archiver.bodies_of(words ->> 'source')) AS body)
                WHEN (words ->> 'nested')::bool THEN origin ELSE current_query() END
$wording$;

-- The place of a statement among those of its text that fire events. A text of the client may roll some of its
-- statements back: only what no rollback undoes can count them, and of a session's state that is a prepared statement.
-- A text that a function runs cannot contain ROLLBACK, but may fail half-way and be run again: there the count must go
-- back with it, as a setting does. Whoever alters the count moves his own statement within his own text, no more.
CREATE FUNCTION archiver.place_of(head jsonb, event text, tag text) RETURNS int LANGUAGE plpgsql AS $place$
DECLARE
    now text := extract(epoch FROM statement_timestamp()) || ' ';
    mark text := ' ' || (head ->> 'mark') || ':';
    nested bool := (head ->> 'nested')::bool;
    script bool := tag IN ('CREATE EXTENSION', 'ALTER EXTENSION');
    counts text;
    places int[];
BEGIN
    IF NOT (head ->> 'several')::bool THEN
        RETURN 1;  -- it is alone, or the number of the statement is told
    END IF;
    IF nested THEN
        counts := current_setting('archiver.counts', true);
    ELSE
        SELECT substring(statement FROM E'\x27([^\x27]*)\x27') INTO counts
          FROM pg_prepared_statements WHERE name = 'archiver_count';
    END IF;
    IF counts IS NULL OR NOT starts_with(counts, now) THEN
        counts := now;
    END IF;
    places := ARRAY(SELECT left(each, 8)::int FROM unnest(string_to_array(
                        substring(counts FROM mark || '([0-9][0-9,]*) '), ',')) AS each WHERE each <> '');
    IF cardinality(places) = 0 THEN
        places := '{0}';
    END IF;
    counts := regexp_replace(counts, mark || '[^ ]*', '');
    IF event = 'ddl_command_start' THEN  -- what an extension's script runs before the end is counted in vain
        places := places[1] || places;
    ELSE
        IF script AND cardinality(places) > 1 THEN
            places := places[2:];
        END IF;
        places[1] := places[1] + 1;
    END IF;
    counts := now || right(substr(counts, length(now) + 1), 4000) || mark || array_to_string(places, ',') || ' ';
    IF nested THEN
        PERFORM set_config('archiver.counts', counts, true);
        RETURN places[1];
    END IF;
    IF EXISTS (SELECT FROM pg_prepared_statements WHERE name = 'archiver_count') THEN
        DEALLOCATE archiver_count;
    END IF;
    EXECUTE format('PREPARE archiver_count AS SELECT %L', counts);
    RETURN places[1];
END
$place$;
