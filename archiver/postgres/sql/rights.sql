-- What GRANT, REVOKE, ALTER DEFAULT PRIVILEGES and DROP OWNED did, as far as no text is needed to tell it.

-- GRANT and REVOKE name no object; what they change of temporary ones alone is nobody's business. Rows of the catalog
-- that this transaction wrote, and a few more: age() counts from its id.
CREATE FUNCTION archiver.has_granted() RETURNS bool LANGUAGE sql STABLE AS $granted$
    SELECT EXISTS (SELECT FROM pg_class WHERE age(xmin) <= 0 AND relpersistence <> 't')
        OR EXISTS (SELECT FROM pg_proc WHERE age(xmin) <= 0 AND pronamespace <> pg_my_temp_schema())
        OR EXISTS (SELECT FROM pg_type WHERE age(xmin) <= 0 AND typnamespace <> pg_my_temp_schema())
        OR EXISTS (SELECT FROM pg_namespace WHERE age(xmin) <= 0 AND nspname !~ '^pg_(toast_)?temp_[0-9]+$')
        OR EXISTS (SELECT FROM pg_language WHERE age(xmin) <= 0)
        OR EXISTS (SELECT FROM pg_foreign_data_wrapper WHERE age(xmin) <= 0)
        OR EXISTS (SELECT FROM pg_foreign_server WHERE age(xmin) <= 0)
        OR EXISTS (SELECT FROM pg_attribute a WHERE age(xmin) <= 0
                      AND (SELECT relpersistence FROM pg_class WHERE oid = a.attrelid) <> 't')
$granted$;

-- What default privileges become, the catalog before and after tells, whatever stands in the text: anybody may send that,
-- in texts of any kind. Those of roles whose rights the session has not it cannot change.
CREATE FUNCTION archiver.default_rights() RETURNS jsonb LANGUAGE sql STABLE AS $defaults$
    SELECT coalesce(jsonb_object_agg(concat_ws(' ', defaclrole, defaclnamespace, defaclobjtype), defaclacl::text), '{}')
      FROM pg_default_acl
     WHERE pg_has_role((current_setting('archiver.session')::jsonb ->> 'role')::name, defaclrole, 'USAGE')
       AND defaclnamespace IS DISTINCT FROM nullif(pg_my_temp_schema(), 0)
$defaults$;

-- Each is told as a statement of its own. In an extension's script they are its own business.
CREATE FUNCTION archiver.record_default_rights(tag text) RETURNS void LANGUAGE plpgsql AS $rights$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_event_trigger_ddl_commands() WHERE in_extension) THEN
        PERFORM archiver.write('ddl', archiver.event_of('ddl_command_end', tag)
                                      || jsonb_build_object('nth', 1, 'source', statement))
           FROM archiver.changed_rights(current_setting('archiver.before')::jsonb, archiver.default_rights()) AS statement;
    END IF;
END
$rights$;

-- Who has the rights of nobody else can have meant nobody else by DROP OWNED, whatever stands in its text. What it drops is
-- told by its drops.
CREATE FUNCTION archiver.disowned() RETURNS text LANGUAGE sql STABLE AS $disowned$
    SELECT format('DROP OWNED BY %I', role) FROM (
        SELECT (current_setting('archiver.session')::jsonb ->> 'role')::name) AS session (role)
     WHERE NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname <> role AND pg_has_role(role, r.oid, 'USAGE'))
$disowned$;

-- Who owns nothing but temporary objects, large ones and default privileges, which are anybody's to have, has no grant option
-- and the rights of nobody else, gives nothing by a GRANT; a warning says so.
CREATE FUNCTION archiver.can_grant_nothing() RETURNS bool LANGUAGE sql STABLE AS $nothing$
    SELECT NOT r.rolsuper AND archiver.disowned() IS NOT NULL AND NOT EXISTS (
        SELECT FROM pg_shdepend s
         WHERE s.refclassid = 'pg_authid'::regclass AND s.refobjid = r.oid
           AND s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
           AND CASE s.deptype WHEN 'o' THEN s.classid NOT IN ('pg_default_acl'::regclass, 'pg_largeobject'::regclass)
                   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = s.classid AND d.objid = s.objid
                                      AND d.refclassid = 'pg_namespace'::regclass
                                      AND d.refobjid = nullif(pg_my_temp_schema(), 0))
               WHEN 'a' THEN EXISTS (
                   SELECT FROM (
                       SELECT relacl FROM pg_class WHERE s.classid = 'pg_class'::regclass AND oid = s.objid
                       UNION ALL SELECT attacl FROM pg_attribute
                        WHERE s.classid = 'pg_class'::regclass AND attrelid = s.objid AND attacl IS NOT NULL
                       UNION ALL SELECT proacl FROM pg_proc WHERE s.classid = 'pg_proc'::regclass AND oid = s.objid
                       UNION ALL SELECT typacl FROM pg_type WHERE s.classid = 'pg_type'::regclass AND oid = s.objid
                       UNION ALL SELECT nspacl FROM pg_namespace WHERE s.classid = 'pg_namespace'::regclass AND oid = s.objid
                       UNION ALL SELECT lanacl FROM pg_language WHERE s.classid = 'pg_language'::regclass AND oid = s.objid
                       UNION ALL SELECT fdwacl FROM pg_foreign_data_wrapper
                        WHERE s.classid = 'pg_foreign_data_wrapper'::regclass AND oid = s.objid
                       UNION ALL SELECT srvacl FROM pg_foreign_server
                        WHERE s.classid = 'pg_foreign_server'::regclass AND oid = s.objid
                   ) AS found (acl), aclexplode(acl) a WHERE a.grantee = r.oid AND a.is_grantable)
               ELSE false END)
      FROM pg_roles r WHERE r.rolname = (current_setting('archiver.session')::jsonb ->> 'role')::name
$nothing$;

-- A role that has no entry in the catalog has the rights of acldefault() in all schemas, and none beside them in one.
CREATE FUNCTION archiver.changed_rights(before jsonb, after jsonb) RETURNS SETOF text LANGUAGE sql STABLE AS $changed$
    WITH keys (key, role, schema, kind) AS (
        SELECT key, split_part(key, ' ', 1)::oid, split_part(key, ' ', 2)::oid, split_part(key, ' ', 3)
          FROM jsonb_object_keys(before || after) AS key
    ), rights AS (
        SELECT k.role, k.schema, k.kind, v.given, a.grantee, a.privilege_type, a.is_grantable
          FROM keys k CROSS JOIN LATERAL (VALUES (false, before ->> key), (true, after ->> key)) AS v (given, acl)
         CROSS JOIN LATERAL aclexplode(coalesce(v.acl::aclitem[], CASE k.schema WHEN 0
                                       THEN acldefault((CASE k.kind WHEN 'S' THEN 's' ELSE k.kind END)::"char", k.role) END)) a
    ), changed AS (
        SELECT role, schema, kind, grantee, privilege_type, is_grantable, bool_and(given) AS given FROM rights
         GROUP BY role, schema, kind, grantee, privilege_type, is_grantable HAVING count(*) = 1
    )
    SELECT format('ALTER DEFAULT PRIVILEGES FOR ROLE %I%s %s %s ON %s %s %s%s', pg_get_userbyid(role),
                  (SELECT format(' IN SCHEMA %I', nspname) FROM pg_namespace WHERE oid = schema),
                  CASE WHEN given THEN 'GRANT' ELSE 'REVOKE' END, string_agg(privilege_type, ', '),
                  CASE kind WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES' WHEN 'f' THEN 'ROUTINES' WHEN 'T' THEN 'TYPES'
                            WHEN 'n' THEN 'SCHEMAS' WHEN 'L' THEN 'LARGE OBJECTS' END,
                  CASE WHEN given THEN 'TO' ELSE 'FROM' END,
                  CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END,
                  CASE WHEN given AND is_grantable THEN ' WITH GRANT OPTION' END)
      FROM changed GROUP BY role, schema, kind, grantee, is_grantable, given ORDER BY given
$changed$;
