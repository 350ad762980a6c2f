-- Replica identities, and what is published. A table that is created, or loses its key, must neither be published
-- without a replica identity (its UPDATEs would fail) nor be left out unnoticed.

CREATE FUNCTION archiver.is_excluded(rel oid) RETURNS bool LANGUAGE sql STABLE AS $excluded$
    SELECT EXISTS (
        SELECT FROM (SELECT rel UNION SELECT relid::oid FROM pg_partition_ancestors(rel)) AS r (oid)
          JOIN pg_class c ON c.oid = r.oid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE (n.nspname, c.relname) IN (
               SELECT * FROM ROWS FROM (unnest(__SCHEMAS__::text[]), unnest(__TABLES__::text[]))))
$excluded$;
