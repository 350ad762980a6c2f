-- Runs as its owner, for only the publication's owner can add to it. Rows that are there already, of a CREATE TABLE AS
-- or of a table that just got its key, are written into the journal.
CREATE FUNCTION archiver.__FUNCTION__() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER __PINNED__ AS $publish$
DECLARE
    one record;
BEGIN
    FOR one IN
        __TOUCHED__
        SELECT c.oid, c.oid::regclass AS name, p.oid IS NOT NULL AS published, archiver.is_excluded(c.oid) AS excluded,
               c.relreplident = 'f' OR c.relreplident IN ('d', 'i') AND EXISTS (
                   SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indimmediate
                      AND CASE c.relreplident WHEN 'd' THEN i.indisprimary ELSE i.indisreplident END) AS keyed
          FROM touched JOIN pg_class c ON c.oid = touched.oid
          LEFT JOIN pg_publication_rel p ON p.prrelid = c.oid
           AND p.prpubid = (SELECT oid FROM pg_publication WHERE pubname = __NAME__)
    LOOP
        IF one.published AND (one.excluded OR NOT one.keyed) THEN
            EXECUTE format('ALTER PUBLICATION %I DROP TABLE %s', __NAME__, one.name);
            PERFORM archiver.record_loss(CASE WHEN one.excluded THEN 'excluded' ELSE 'keyless' END, one.name::text);
            RAISE WARNING 'archiver: % % and is not archived any more', one.name,
                CASE WHEN one.excluded THEN 'became an excluded table' ELSE 'lost its key' END;
        ELSIF one.keyed AND NOT one.published AND NOT one.excluded THEN
            EXECUTE format('ALTER PUBLICATION %I ADD TABLE ONLY %s', __NAME__, one.name);
            IF pg_relation_size(one.oid) > 0 THEN
                PERFORM archiver.record_rows(one.oid);
            END IF;
        END IF;
    END LOOP;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'archiver: the tables of % were not published: %', tg_tag, SQLERRM;
    PERFORM archiver.record_loss('unpublished', concat(tg_tag, ': ', SQLERRM));
END
$publish$;
