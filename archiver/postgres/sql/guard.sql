-- As whoever runs the statement where he may, for a restore runs it as he did; what a DROP took from the tables of others
-- is seen to by the functions' owner. A key's table is locked by who drops it: only for another one is there a wait.
-- A block with EXCEPTION costs more the more tables its transaction has made, so there is none where nothing is to do.
CREATE FUNCTION archiver.__FUNCTION__() RETURNS event_trigger LANGUAGE plpgsql __RIGHTS__
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms' __LOOKUPS__ AS $guard$
DECLARE
    keyless oid[] := ARRAY(
        __TOUCHED__
        SELECT c.oid FROM touched JOIN pg_class c ON c.oid = touched.oid
         WHERE __WHOSE__ AND c.relreplident IN ('d', 'i', 'n') AND NOT EXISTS (
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
