-- DDL: every statement that fires event triggers becomes a row of the journal in its own transaction. Nothing here
-- fails the application's statement, and nothing waits: what cannot be captured is recorded as lost.

-- Who runs the statement, and under which settings, only a function without a SET clause can tell that runs with the
-- rights of its caller. It fires right before the others, and no code of the user's runs in between. What a setting
-- holds is replaced here, whoever wrote it. Every name is qualified: the search_path is the user's.
CREATE FUNCTION archiver.note_session() RETURNS event_trigger LANGUAGE plpgsql AS $note$
BEGIN
    PERFORM pg_catalog.set_config('archiver.session', pg_catalog.json_build_object(
        'role', current_user, 'session_role', session_user,
        'schemas', pg_catalog.to_json(pg_catalog.current_schemas(false)),
        'settings', (
            SELECT pg_catalog.json_object_agg(name, CASE
                       WHEN pg_catalog.octet_length(value) OPERATOR(pg_catalog.<=) __SETTING_LIMIT__ THEN value END)
              FROM pg_catalog.unnest(ARRAY[__SETTINGS__]) AS name, pg_catalog.current_setting(name, true) AS value),
        'untold', (
            SELECT pg_catalog.bool_or(pg_catalog.octet_length(pg_catalog.current_setting(name, true))
                                      OPERATOR(pg_catalog.>) __SETTING_LIMIT__)
              FROM pg_catalog.unnest(ARRAY[__SETTINGS__]) AS name))::pg_catalog.text, true);
END
$note$;

CREATE FUNCTION archiver.capture_ddl() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER __CAPTURING__
AS $capture$
DECLARE
    stack text;
    origin text;
BEGIN
    BEGIN
        GET DIAGNOSTICS stack = PG_CONTEXT;
        origin := CASE WHEN stack LIKE E'%\n%' THEN substr(stack, strpos(stack, E'\n') + 1) ELSE '' END;
    EXCEPTION WHEN statement_too_complex THEN
        RAISE;
    WHEN program_limit_exceeded OR out_of_memory THEN
        origin := NULL;  -- more than a value can hold: of what leaves nothing behind nobody needs it
    END;
    IF tg_event = 'ddl_command_start' THEN
        PERFORM archiver.record_start(tg_tag, origin);
    ELSIF tg_event = 'table_rewrite' THEN
        PERFORM archiver.note_rewrite(pg_event_trigger_table_rewrite_oid(), pg_event_trigger_table_rewrite_reason(),
                                      origin);
    ELSIF tg_event = 'sql_drop' THEN
        PERFORM archiver.record_drop(tg_tag, origin);
    ELSE
        PERFORM archiver.record_end(tg_tag, origin);
    END IF;
EXCEPTION WHEN statement_too_complex THEN
    RAISE;  -- the statement fails anyway a call deeper: anybody could make losses at the limit of the stack
WHEN OTHERS THEN
    RAISE WARNING 'archiver: % was not captured, a base snapshot follows: %', tg_tag, SQLERRM;
    PERFORM archiver.record_loss('failed', concat(tg_tag, ': ', SQLERRM));
END
$capture$;

-- What a role may do by what fires no event trigger; memberships only as far as it has the rights of the others.
CREATE FUNCTION archiver.rights_of(role text) RETURNS jsonb LANGUAGE sql STABLE AS $rights$
    WITH RECURSIVE me AS (
        SELECT oid, rolsuper FROM pg_roles WHERE rolname = role
    ), above (oid) AS (
        SELECT a.roleid FROM pg_auth_members a JOIN me ON a.member = me.oid
        UNION SELECT a.roleid FROM pg_auth_members a JOIN above ON a.member = above.oid
    )
    SELECT CASE WHEN rolsuper THEN '{"superuser": true}' ELSE jsonb_strip_nulls(jsonb_build_object(
               'owner', nullif(me.oid = d.datdba, false),
               'create', nullif(has_database_privilege(me.oid, d.oid, 'CREATE'), false),
               'roles', (SELECT jsonb_agg(r.rolname) FROM above JOIN pg_roles r ON r.oid = above.oid
                          WHERE pg_has_role(me.oid, r.oid, 'USAGE')))) END
      FROM me, pg_database d WHERE d.datname = current_database()
$rights$;

CREATE FUNCTION archiver.event_of(event text, tag text) RETURNS jsonb LANGUAGE sql STABLE AS $event$
    SELECT session - 'untold'
           || jsonb_build_object('event', event, 'tag', tag, 'rights', archiver.rights_of(session ->> 'role'))
      FROM (SELECT current_setting('archiver.session')::jsonb) AS noted (session)
$event$;

CREATE FUNCTION archiver.record_start(tag text, origin text) RETURNS void LANGUAGE plpgsql AS $start$
BEGIN
    IF current_setting('transaction_read_only')::bool THEN
        RETURN;  -- a temporary table, or nothing
    END IF;
    IF tag = 'ALTER DEFAULT PRIVILEGES' THEN
        PERFORM set_config('archiver.before', archiver.default_rights()::text, true);
        RETURN;
    END IF;
    IF origin IS NOT NULL THEN  -- else it counts as changed
        PERFORM archiver.keep_session(tag, origin);
    END IF;
    IF tag NOT IN (__STARTS__) THEN
        RETURN;
    END IF;
    IF tag IN ('CREATE EXTENSION', 'ALTER EXTENSION') AND origin IS NOT NULL THEN
        PERFORM archiver.place_of(archiver.head_of(origin), 'ddl_command_start', tag);
    END IF;
    PERFORM archiver.write('ddl', archiver.event_of('ddl_command_start', tag));
END
$start$;

CREATE FUNCTION archiver.record_drop(tag text, origin text) RETURNS void LANGUAGE plpgsql AS $drop$
DECLARE
    dropped jsonb;
BEGIN
    IF tag NOT LIKE 'DROP %' THEN
        RETURN;
    END IF;
    PERFORM archiver.note_routines(array_agg(address_names[cardinality(address_names)]), origin)
       FROM pg_event_trigger_dropped_objects() WHERE classid = 'pg_proc'::regclass HAVING count(*) > 0;
    SELECT jsonb_agg(jsonb_build_object('type', object_type, 'identity', object_identity,
                                        'names', address_names, 'args', address_args))
      INTO dropped FROM pg_event_trigger_dropped_objects()
     WHERE original AND NOT is_temporary AND schema_name IS DISTINCT FROM 'archiver'
       AND NOT (object_type IN ('cast', 'transform') AND address_names[1] ~ '^pg_temp(_[0-9]+)?[.]'
             OR object_type = 'cast' AND address_args[1] ~ '^pg_temp(_[0-9]+)?[.]')  -- no other schema's name begins so
       AND NOT (object_type = 'schema' AND object_name = 'archiver')
       AND NOT (object_type IN ('trigger', 'policy', 'rule') AND address_names[1] = 'archiver');
    IF dropped IS NOT NULL THEN
        PERFORM archiver.write('ddl', archiver.event_of('sql_drop', tag) || jsonb_build_object('objects', dropped));
    END IF;
END
$drop$;

-- The schema of an object, or of the table that it stands on; of a cast and a transform, where its type is temporary.
CREATE FUNCTION archiver.schema_of(class oid, object oid, named text) RETURNS text LANGUAGE sql STABLE AS $schema$
    SELECT coalesce(named, (
        SELECT CASE WHEN c.relnamespace = pg_my_temp_schema() THEN 'pg_temp' ELSE n.nspname END
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid = CASE class WHEN 'pg_trigger'::regclass THEN (SELECT tgrelid FROM pg_trigger WHERE oid = object)
                                  WHEN 'pg_policy'::regclass THEN (SELECT polrelid FROM pg_policy WHERE oid = object)
                                  WHEN 'pg_rewrite'::regclass THEN (SELECT ev_class FROM pg_rewrite WHERE oid = object)
                       END), (
        SELECT 'pg_temp' FROM pg_type t WHERE t.typnamespace = pg_my_temp_schema() AND t.oid IN (
               SELECT unnest(ARRAY[castsource, casttarget]) FROM pg_cast
                WHERE oid = object AND class = 'pg_cast'::regclass
               UNION ALL SELECT trftype FROM pg_transform WHERE oid = object AND class = 'pg_transform'::regclass) LIMIT 1))
$schema$;

CREATE FUNCTION archiver.record_end(tag text, origin text) RETURNS void LANGUAGE plpgsql AS $end$
DECLARE
    head jsonb := CASE WHEN origin IS NOT NULL THEN archiver.head_of(origin) ELSE '{}' END;
    words jsonb;
    message jsonb;
    objects jsonb;
    tables oid[];
    otherwise bool := origin IS NOT NULL AND archiver.session_changed(tag, origin);
BEGIN
    IF tag = 'REINDEX' THEN  -- which fires from 17 on only
        RETURN;
    END IF;
    message := jsonb_build_object('nth', CASE WHEN origin IS NULL THEN 1
                                              ELSE archiver.place_of(head, 'ddl_command_end', tag) END);
    IF tag = 'ALTER DEFAULT PRIVILEGES' THEN
        PERFORM archiver.record_default_rights(tag);
        RETURN;
    END IF;
    IF tag LIKE 'DROP %' AND tag <> 'DROP OWNED' THEN
        RETURN;
    END IF;
    IF tag ~ '^(CREATE|ALTER) (FUNCTION|PROCEDURE|ROUTINE)' THEN
        PERFORM archiver.note_routines(array_agg(p.proname::text), origin)
           FROM pg_event_trigger_ddl_commands() d JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid;
    END IF;
    SELECT jsonb_agg(jsonb_build_object('type', object_type, 'schema', schema_name, 'identity', object_identity,
                                        'oid', objid::bigint)) FILTER (WHERE NOT in_extension),
           array_agg(objid) FILTER (WHERE NOT in_extension AND classid = 'pg_class'::regclass)
      INTO objects, tables FROM pg_event_trigger_ddl_commands()
     WHERE coalesce(archiver.schema_of(classid, objid, schema_name), '') NOT IN ('pg_temp', 'archiver')
       AND NOT (object_type = 'schema' AND object_identity = 'archiver')
       AND lower(object_type) <> 'large object';  -- no restore brings them back
    IF tag IN ('GRANT', 'REVOKE') AND (pg_my_temp_schema() <> 0 AND NOT archiver.has_granted()
                                       OR archiver.can_grant_nothing()) THEN
        objects := NULL;
    END IF;
    IF objects IS NULL AND current_setting('transaction_read_only')::bool THEN
        RETURN;
    END IF;
    IF objects IS NULL AND tag NOT IN (
        'CREATE TABLE AS', 'SELECT INTO', 'CREATE EXTENSION', 'ALTER EXTENSION',  -- whose starts were told
        'DROP OWNED',
        'ALTER PUBLICATION'  -- which names no object where it only takes some out
    ) THEN
        RETURN;
    END IF;
    IF objects IS NOT NULL AND (origin IS NULL OR (current_setting('archiver.session')::jsonb ->> 'untold')::bool) THEN
        RAISE EXCEPTION 'its settings or its context are too long';
    END IF;
    IF tag = 'DROP OWNED' AND archiver.disowned() IS NOT NULL THEN
        words := jsonb_build_object('source', archiver.disowned());
        message := '{"nth": 1}';
    ELSIF objects IS NULL AND tag ~ 'EXTENSION$' OR tag IN ('CREATE TABLE AS', 'SELECT INTO') THEN
        words := head;  -- it left nothing behind, or is described
    ELSE
        words := archiver.text_of(head, origin);
    END IF;
    message := message || archiver.event_of('ddl_command_end', tag)
            || jsonb_build_object('objects', objects, 'source', words -> 'source', 'text', words -> 'text')
            || archiver.described(tag, words, tables);
    IF tag ~ '^(CREATE|ALTER) (FUNCTION|PROCEDURE|ROUTINE)' THEN
        message := message || archiver.configured();
    END IF;
    PERFORM archiver.write('ddl', message);
    IF objects IS NULL AND tag IN ('CREATE TABLE AS', 'SELECT INTO', 'DROP OWNED') THEN
        RETURN;
    END IF;
    IF otherwise THEN
        PERFORM archiver.record_loss('session', tag);
    END IF;
    PERFORM archiver.record_moments(tag, words);
    PERFORM archiver.record_temporary(tag);
    IF tag ~ '^ALTER (TABLE|TYPE)$|EXTENSION$' THEN
        PERFORM archiver.record_rewritten(tag, origin, tables, nullif(message -> 'missing', 'null'));
    END IF;
END
$end$;

-- The temporary relations and types that a name without a schema means: pg_temp comes first, or where the path names it.
CREATE FUNCTION archiver.temporary_names() RETURNS jsonb LANGUAGE sql STABLE AS $temporary$
    WITH path AS (
        SELECT n.oid, at FROM jsonb_array_elements_text(current_setting('archiver.session')::jsonb -> 'schemas')
               WITH ORDINALITY AS s (name, at) JOIN pg_namespace n ON n.nspname = s.name
    ), before AS (
        SELECT oid FROM path WHERE at < (SELECT at FROM path WHERE oid = pg_my_temp_schema())
    )
    SELECT jsonb_agg(name) FROM (
        SELECT relname AS name FROM pg_class c WHERE c.relnamespace = pg_my_temp_schema() AND NOT EXISTS (
               SELECT FROM pg_class o JOIN before b ON b.oid = o.relnamespace WHERE o.relname = c.relname)
        UNION
        SELECT typname FROM pg_type t WHERE t.typnamespace = pg_my_temp_schema() AND t.typtype IN ('d', 'e', 'r')
           AND NOT EXISTS (SELECT FROM pg_type o JOIN before b ON b.oid = o.typnamespace WHERE o.typname = t.typname)
    ) AS found
$temporary$;

-- What the text of a statement does not tell of what it made.
CREATE FUNCTION archiver.described(tag text, words jsonb, tables oid[]) RETURNS jsonb LANGUAGE plpgsql AS $described$
DECLARE
    result jsonb := '{}';
BEGIN
    IF tag IN ('GRANT', 'REVOKE', 'CREATE STATISTICS') THEN
        result := jsonb_build_object('temporary', archiver.temporary_names());
    ELSIF tag IN ('CREATE TABLE AS', 'SELECT INTO', 'IMPORT FOREIGN SCHEMA') THEN
        result := jsonb_build_object('created', archiver.describe_tables(tables));
    ELSIF tag = 'ALTER TABLE' THEN
        result := jsonb_build_object('missing', archiver.missing_values(tables));
    END IF;
    IF tag IN ('CREATE TABLE', 'ALTER TABLE') AND (words ->> 'copies')::bool THEN
        result := result || jsonb_build_object('indexes', archiver.new_indexes(tables));
    END IF;
    IF tag IN ('CREATE TABLE', 'CREATE FOREIGN TABLE', 'CREATE SCHEMA', 'ALTER TABLE') AND (words ->> 'bounds')::bool THEN
        result := result || jsonb_build_object('bounds', archiver.bounds_of(tag, tables));
    END IF;
    IF (words ->> 'moment')::bool THEN
        result := result || jsonb_build_object('defaults', archiver.defaults_of(tables));
    END IF;
    IF tag IN ('CREATE TABLE', 'CREATE SCHEMA') AND EXISTS (
        SELECT FROM jsonb_array_elements_text(nullif(words -> 'likes', 'null')) AS name
          JOIN pg_class c ON c.relname = name WHERE c.relnamespace = pg_my_temp_schema()
    ) THEN
        PERFORM archiver.record_loss('like-temporary', tag);  -- what LIKE copied of it nobody knows
    END IF;
    RETURN result;
END
$described$;

-- What the bounds of new partitions came out as, which may be computed: of tables that are made, or that this very
-- transaction attached (age() counts from its id).
CREATE FUNCTION archiver.bounds_of(tag text, tables oid[]) RETURNS jsonb LANGUAGE sql STABLE AS $bounds$
    SELECT jsonb_agg(jsonb_build_object('schema', n.nspname, 'name', c.relname, 'bound', pg_get_expr(c.relpartbound, c.oid)))
      FROM (SELECT unnest(tables) AS oid WHERE tag <> 'ALTER TABLE'
            UNION SELECT inhrelid FROM pg_inherits WHERE inhparent = ANY (tables) AND age(xmin) <= 0) AS made
      JOIN pg_class c ON c.oid = made.oid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relpartbound IS NOT NULL
$bounds$;

-- What SET ... FROM CURRENT became.
CREATE FUNCTION archiver.configured() RETURNS jsonb LANGUAGE sql STABLE AS $configured$
    SELECT jsonb_build_object('configured', jsonb_agg(setting))
      FROM pg_event_trigger_ddl_commands() d
      JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid, unnest(p.proconfig) AS setting
$configured$;

-- What holds expressions. Of what a function's body does, nothing is evaluated when it is made, unless it is BEGIN ATOMIC.
CREATE FUNCTION archiver.record_moments(tag text, words jsonb) RETURNS void LANGUAGE plpgsql AS $moments$
BEGIN
    IF (words ->> 'moment')::bool AND (
        tag ~ '^(CREATE|ALTER) (SCHEMA|DOMAIN|VIEW|MATERIALIZED VIEW|INDEX|STATISTICS|TRIGGER|RULE|POLICY|PUBLICATION)$'
        OR tag ~ '^(CREATE|ALTER) (FOREIGN )?TABLE$' AND (words ->> 'beside')::bool  -- else they are described
        OR tag ~ '^(CREATE|ALTER) (FUNCTION|PROCEDURE|ROUTINE)$' AND (words ->> 'atomic')::bool
    ) THEN
        PERFORM archiver.record_loss('moment', tag);
    END IF;
END
$moments$;

-- What a permanent object stands on that is temporary (a function in a default, a type of a column, a trigger's function) is
-- nowhere but at the source. Statistics may stand on a temporary table: a restore leaves them out.
CREATE FUNCTION archiver.record_temporary(tag text) RETURNS void LANGUAGE plpgsql AS $temporary$
BEGIN
    IF pg_my_temp_schema() = 0 OR tag = 'CREATE STATISTICS' THEN
        RETURN;
    END IF;
    IF EXISTS (
        WITH made AS (
            SELECT classid, objid FROM pg_event_trigger_ddl_commands()
             WHERE NOT in_extension AND coalesce(archiver.schema_of(classid, objid, schema_name), '') <> 'pg_temp'
        ), parts AS (
            SELECT classid, objid FROM made
            UNION SELECT d.classid, d.objid FROM made m
              JOIN pg_depend d ON d.refclassid = m.classid AND d.refobjid = m.objid AND d.deptype IN ('a', 'i')
        )
        SELECT FROM parts p JOIN pg_depend d ON d.classid = p.classid AND d.objid = p.objid
         WHERE d.refobjid >= 16384 AND (EXISTS (
                   SELECT FROM pg_depend n WHERE n.classid = d.refclassid AND n.objid = d.refobjid
                      AND n.refclassid = 'pg_namespace'::regclass AND n.refobjid = pg_my_temp_schema())
            OR d.refclassid = 'pg_type'::regclass
               AND (SELECT typnamespace FROM pg_type WHERE oid = d.refobjid) = pg_my_temp_schema())
    ) THEN
        PERFORM archiver.record_loss('temporary', tag);
    END IF;
END
$temporary$;

-- CREATE TABLE AS may read temporary tables, call volatile functions or run a prepared statement, and IMPORT FOREIGN
-- SCHEMA asks another server: neither can be repeated, so the tables that they made are described.
CREATE FUNCTION archiver.describe_tables(tables oid[]) RETURNS jsonb LANGUAGE sql STABLE AS $describe$
    SELECT jsonb_agg(jsonb_build_object(
               'schema', n.nspname, 'name', c.relname, 'persistence', c.relpersistence,
               'method', am.amname, 'options', c.reloptions || ARRAY(SELECT 'toast.' || o FROM unnest(toast.reloptions) AS o),
               'server', s.srvname,
               'server_options', (SELECT jsonb_agg(jsonb_build_array(o.option_name, o.option_value))
                                    FROM pg_options_to_table(f.ftoptions) o),
               'columns', (SELECT jsonb_agg(jsonb_build_object(
                        'name', a.attname, 'type', format_type(a.atttypid, a.atttypmod), 'not_null', a.attnotnull,
                        'collation', CASE WHEN a.attcollation <> t.typcollation
                                          THEN quote_ident(cn.nspname) || '.' || quote_ident(co.collname) END,
                        'default', pg_get_expr(d.adbin, d.adrelid),
                        'options', (SELECT jsonb_agg(jsonb_build_array(o.option_name, o.option_value))
                                      FROM pg_options_to_table(a.attfdwoptions) o)) ORDER BY a.attnum)
                    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
                    LEFT JOIN pg_collation co ON co.oid = a.attcollation
                    LEFT JOIN pg_namespace cn ON cn.oid = co.collnamespace
                    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
                   WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)))
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_am am ON am.oid = c.relam
      LEFT JOIN pg_class toast ON toast.oid = c.reltoastrelid
      LEFT JOIN pg_foreign_table f ON f.ftrelid = c.oid LEFT JOIN pg_foreign_server s ON s.oid = f.ftserver
     WHERE c.oid = ANY (tables) AND c.relkind IN ('r', 'f')
$describe$;

-- ADD COLUMN ... DEFAULT now() is evaluated once and kept in the catalog, of each partition or child for itself.
CREATE FUNCTION archiver.missing_values(tables oid[]) RETURNS jsonb LANGUAGE sql STABLE AS $missing$
    WITH RECURSIVE altered AS (
        SELECT root, root AS rel FROM unnest(tables) AS root
        UNION SELECT a.root, i.inhrelid FROM altered a JOIN pg_inherits i ON i.inhparent = a.rel
    ), found AS (
        SELECT DISTINCT ON (r.root, a.attname) a.attname AS name, format_type(a.atttypid, a.atttypmod) AS type,
               a.attmissingval::text AS value, pg_get_expr(d.adbin, d.adrelid) AS expression,
               max(a.attmissingval::text) OVER same <> min(a.attmissingval::text) OVER same AS differ
          FROM altered r JOIN pg_attribute a ON a.attrelid = r.rel
          LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
         WHERE a.atthasmissing AND NOT a.attisdropped
        WINDOW same AS (PARTITION BY r.root, a.attname)
    )
    SELECT jsonb_object_agg(name, jsonb_build_object('type', type, 'value', value, 'default', expression)
                                  || CASE WHEN differ THEN '{"differ": true}' ELSE '{}' END::jsonb) FROM found
$missing$;

-- Of partitions and children, too: each has a default of its own.
CREATE FUNCTION archiver.defaults_of(tables oid[]) RETURNS jsonb LANGUAGE sql STABLE AS $defaults$
    WITH RECURSIVE meant AS (
        SELECT unnest(tables) AS rel
        UNION SELECT i.inhrelid FROM meant m JOIN pg_inherits i ON i.inhparent = m.rel
    )
    SELECT jsonb_agg(jsonb_build_object('schema', n.nspname, 'name', c.relname, 'column', a.attname,
                                        'default', pg_get_expr(d.adbin, d.adrelid)))
      FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
      JOIN pg_class c ON c.oid = d.adrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.oid IN (SELECT rel FROM meant) AND a.attgenerated = '' AND NOT a.attisdropped
$defaults$;

-- Indexes of the tables and their partitions that this very transaction made: age() counts from its id.
CREATE FUNCTION archiver.new_indexes(tables oid[]) RETURNS jsonb LANGUAGE sql STABLE AS $new$
    WITH RECURSIVE meant AS (
        SELECT unnest(tables) AS rel
        UNION SELECT i.inhrelid FROM meant m JOIN pg_inherits i ON i.inhparent = m.rel
    )
    SELECT jsonb_agg(jsonb_build_object('schema', n.nspname, 'name', c.relname, 'rest', __REST__) ORDER BY c.oid)
      FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE x.indrelid IN (SELECT rel FROM meant) AND age(c.xmin) <= 0
$new$;
