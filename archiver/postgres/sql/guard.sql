-- Runs as whoever changes the table, who owns it. A block with EXCEPTION costs more the more tables its transaction has
-- made, so there is none where there is nothing to do.
CREATE FUNCTION archiver.guard_keyless() RETURNS event_trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp __LOOKUPS__ AS $guard$
DECLARE
    keyless oid[] := ARRAY(
        __TOUCHED__
        SELECT c.oid FROM touched JOIN pg_class c ON c.oid = touched.oid
         WHERE c.relreplident IN ('d', 'i', 'n') AND NOT EXISTS (
               SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indimmediate
                  AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident END));
    rel oid;
BEGIN
    FOREACH rel IN ARRAY keyless LOOP
        BEGIN
            EXECUTE format('ALTER TABLE %s REPLICA IDENTITY FULL', rel::regclass);
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'archiver: cannot set the replica identity of %: %', rel::regclass, SQLERRM;
        END;
    END LOOP;
END
$guard$;
