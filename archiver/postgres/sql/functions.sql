-- What the functions of all event triggers use. They run with the rights of their owner, under settings that only the
-- functions which PostgreSQL itself calls make their own. Nobody else may execute them.

CREATE FUNCTION archiver.write(what text, said jsonb) RETURNS void LANGUAGE plpgsql AS $write$
DECLARE
    written tid;
BEGIN
    INSERT INTO archiver.journal (kind, content)
    VALUES (what, (said || jsonb_build_object('lsn', pg_current_wal_insert_lsn()))::text)
    RETURNING ctid INTO written;
    DELETE FROM archiver.journal WHERE ctid = written;
END
$write$;

-- Where the journal cannot be written (somebody holds a lock of it, or it is gone), it counts. Where not even that can
-- be, the statement fails: somebody made his transaction read-only meanwhile, or filled the table of locks, to hide it.
CREATE FUNCTION archiver.record_loss(reason text, what text) RETURNS void LANGUAGE plpgsql AS $loss$
BEGIN
    PERFORM archiver.write('lost', jsonb_build_object('reason', reason, 'what', left(what, 300)));
EXCEPTION WHEN OTHERS THEN
    BEGIN
        PERFORM nextval('archiver.losses');
    EXCEPTION WHEN OTHERS THEN
        RAISE EXCEPTION 'archiver: a schema change that can neither be captured nor counted: %', SQLERRM
              USING ERRCODE = SQLSTATE;
    END;
END
$loss$;

-- A restore point is a row, too: whoever may execute this function may name one.
CREATE FUNCTION archiver.restore_point(name text) RETURNS pg_lsn LANGUAGE plpgsql SECURITY DEFINER __PINNED__
AS $point$
DECLARE
    named pg_lsn := pg_current_wal_insert_lsn();
BEGIN
    IF name IS NULL OR octet_length(name) NOT BETWEEN 1 AND 63 OR name ~ '[[:cntrl:]]' THEN
        RAISE EXCEPTION 'a restore point has a name of 1 to 63 bytes without control characters'
              USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM archiver.write('point', jsonb_build_object('name', name, 'at', named));
    RETURN named;
END
$point$;

-- Whether reading all rows of a table runs nobody's code. The planner evaluates what it can of the expressions of
-- indexes and statistics, as the current user: of functions, operators and types that are not PostgreSQL's. Those of a
-- superuser, or of whoever owns this function, are nobody's else. Constraints it leaves alone where constraint_exclusion
-- is off. OIDs from 16384 on are users' (FirstNormalObjectId, transam.h).
CREATE FUNCTION archiver.is_plain(rel oid) RETURNS bool LANGUAGE sql STABLE AS $plain$
    SELECT relkind = 'r' AND NOT EXISTS (
        SELECT FROM pg_depend d
         WHERE d.refobjid >= 16384
           AND d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass, 'pg_type'::regclass)
           AND NOT EXISTS (SELECT FROM pg_roles r WHERE (r.rolsuper OR r.rolname = current_user) AND r.oid = CASE
                   WHEN d.refclassid = 'pg_proc'::regclass THEN (SELECT proowner FROM pg_proc WHERE oid = d.refobjid)
                   WHEN d.refclassid = 'pg_operator'::regclass
                   THEN (SELECT oprowner FROM pg_operator WHERE oid = d.refobjid)
                   ELSE (SELECT typowner FROM pg_type WHERE oid = d.refobjid) END)
           AND (d.classid = 'pg_class'::regclass AND d.objid IN (SELECT indexrelid FROM pg_index WHERE indrelid = rel)
             OR d.classid = 'pg_statistic_ext'::regclass
                AND d.objid IN (SELECT oid FROM pg_statistic_ext WHERE stxrelid = rel)))
      FROM pg_class WHERE oid = rel
$plain$;

-- All rows of a table, each as the text of its record. concat() calls the output functions of types, which only a
-- superuser can make; a cast would be the user's.
CREATE FUNCTION archiver.record_rows(rel oid) RETURNS void LANGUAGE plpgsql AS $rows$
DECLARE
    message jsonb := (SELECT jsonb_build_object('schema', n.nspname, 'name', c.relname)
                        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = rel);
    rows text[] := '{}';
    size int := 0;
    first bool := true;
    line text;
BEGIN
    IF pg_table_size(rel) > __LIMIT__ OR NOT archiver.is_plain(rel) THEN
        PERFORM archiver.record_loss('rows', rel::regclass::text);
        RETURN;
    END IF;
    FOR line IN EXECUTE format('SELECT concat(archiver_row.*) FROM ONLY %s AS archiver_row WHERE NOT %L::bool',
                               rel::regclass, (SELECT relpersistence = 'u' FROM pg_class WHERE oid = rel)) LOOP
        rows := rows || line;
        size := size + length(line);
        IF size > 1000000 THEN
            PERFORM archiver.write('rows', message || jsonb_build_object('first', first, 'rows', rows));
            rows := '{}';
            size := 0;
            first := false;
        END IF;
    END LOOP;
    IF first OR size > 0 THEN
        PERFORM archiver.write('rows', message || jsonb_build_object('first', first, 'rows', rows));
    END IF;
END
$rows$;
