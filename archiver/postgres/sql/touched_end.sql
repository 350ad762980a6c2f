WITH RECURSIVE named AS (
            SELECT coalesce(k.conrelid, d.objid) AS oid FROM pg_event_trigger_ddl_commands() d
              LEFT JOIN pg_constraint k ON d.classid = 'pg_constraint'::regclass AND k.oid = d.objid
             WHERE d.classid IN ('pg_constraint'::regclass, 'pg_class'::regclass)
            UNION
            SELECT i.inhrelid FROM named JOIN pg_inherits i ON i.inhparent = named.oid
        ), touched AS (
            SELECT c.oid FROM named JOIN pg_class c ON c.oid = named.oid JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname !~ '^(pg_|archiver$|information_schema$)'
        )
