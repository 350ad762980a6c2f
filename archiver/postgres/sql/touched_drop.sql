WITH dropped AS (  -- the tables of an ALTER TABLE are seen to when it has ended, and was captured
            SELECT object_type, objid, address_names FROM pg_event_trigger_dropped_objects()
             WHERE NOT is_temporary AND object_type IN ('table column', 'table constraint', 'index')
               AND tg_tag <> 'ALTER TABLE'
        ), found AS (
            SELECT objid AS oid FROM dropped WHERE object_type = 'table column'
            UNION
            SELECT c.oid FROM dropped d JOIN pg_namespace n ON n.nspname = d.address_names[1]
              JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = d.address_names[2]
             WHERE d.object_type = 'table constraint'
            UNION  -- nothing tells whose the index was, but its table is locked
            SELECT c.oid FROM pg_locks l JOIN pg_class c ON c.oid = l.relation AND c.relreplident = 'i'
             WHERE l.locktype = 'relation' AND l.pid = pg_backend_pid() AND tg_tag <> 'DROP TABLE'
               AND EXISTS (SELECT FROM dropped WHERE object_type = 'index')
        ), touched AS (
            SELECT c.oid FROM found JOIN pg_class c ON c.oid = found.oid JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname !~ '^(pg_|archiver$|information_schema$)'
        )
