"""Which functions run no code of users and do nothing, so that an expression that calls them may run as anybody.

Of PostgreSQL's own the IMMUTABLE ones are, and those of two lists. All others are not: some run a text as a query
(ts_rewrite, query_to_xml), read a table or view (table_to_xml), read a value as of a type that they are told when they
run, whose checks are its owner's (domain_in, pg_input_is_valid), or act (nextval, set_config, lo_unlink). What a later
version brings is not trusted either. Of a superuser's extension the IMMUTABLE ones are, where nobody can put a function
in front of what they call: they are written in C, or their bodies were read when they were made (BEGIN ATOMIC).
"""

from __future__ import annotations

from typing import Final, LiteralString

_NOT_TRUSTED_IMMUTABLE: Final[LiteralString] = "satisfies_hash_partition"
NOT_TRUSTED_IMMUTABLE: Final = frozenset(_NOT_TRUSTED_IMMUTABLE.split())
"""It is given a table, by OID: to know its partition key, the server computes what is constant in it."""

# What depends on nothing but its arguments and on time zone, locale, encoding, and settings of formats and text search.
# The casts of values to json and to text that they make are of types that the expression names.
_STABLE: Final[LiteralString] = """
    age date date_add date_part date_subtract date_trunc extract in_range make_timestamptz now overlaps
    statement_timestamp time timestamp timestamptz timetz timezone to_timestamp transaction_timestamp
    date_cmp_timestamptz date_eq_timestamptz date_ge_timestamptz date_gt_timestamptz date_le_timestamptz
    date_lt_timestamptz date_ne_timestamptz timestamp_cmp_timestamptz timestamp_eq_timestamptz
    timestamp_ge_timestamptz timestamp_gt_timestamptz timestamp_le_timestamptz timestamp_lt_timestamptz
    timestamp_ne_timestamptz timestamptz_cmp_date timestamptz_cmp_timestamp timestamptz_eq_date
    timestamptz_eq_timestamp timestamptz_ge_date timestamptz_ge_timestamp timestamptz_gt_date
    timestamptz_gt_timestamp timestamptz_le_date timestamptz_le_timestamp timestamptz_lt_date
    timestamptz_lt_timestamp timestamptz_mi_interval timestamptz_ne_date timestamptz_ne_timestamp
    timestamptz_pl_interval interval_pl_timestamptz
    anytextcat array_to_string concat concat_ws convert convert_from convert_to format length quote_literal
    quote_nullable textanycat to_char to_date to_number money numeric
    array_to_json json_build_array json_build_object jsonb_build_array jsonb_build_object row_to_json to_json to_jsonb
    jsonb_path_exists_tz jsonb_path_match_tz jsonb_path_query_array_tz jsonb_path_query_first_tz
    get_current_ts_config json_to_tsvector jsonb_to_tsvector phraseto_tsquery plainto_tsquery to_tsquery to_tsvector
    ts_headline ts_match_tq ts_match_tt websearch_to_tsquery
    enum_first enum_last enum_range xml xml_is_well_formed
    regclass to_regclass to_regcollation to_regnamespace to_regoper to_regoperator to_regproc to_regprocedure to_regrole
    to_regtype to_regtypemod format_type
    current_database current_schema current_schemas current_setting current_user getdatabaseencoding getpgusername
    inet_client_addr inet_client_port inet_server_addr inet_server_port pg_backend_pid pg_client_encoding
    pg_collation_for pg_column_compression pg_column_size pg_get_userbyid pg_trigger_depth pg_typeof session_user
    system_user version
"""
_VOLATILE: Final[LiteralString] = """
    array_sample array_shuffle clock_timestamp gen_random_uuid pg_is_in_recovery random random_normal timeofday uuidv4
    uuidv7
"""
TRUSTED_NAMES: Final = frozenset((_STABLE + _VOLATILE).split())
"""Those of pg_catalog that are not IMMUTABLE and are trusted, whatever arguments they take."""


def _array(names: LiteralString) -> LiteralString:
    return "'{" + ",".join(names.split()) + "}'::pg_catalog.name[]"


# Objects of the system have OIDs below 16384 (FirstNormalObjectId, transam.h); 12 and 13 are internal and c.
TRUSTED: Final[LiteralString] = f"""
CASE WHEN p.oid < 16384 AND p.provolatile = 'i' THEN p.proname <> ALL ({_array(_NOT_TRUSTED_IMMUTABLE)})
     WHEN p.oid < 16384 THEN p.proname = ANY ({_array(_STABLE + _VOLATILE)})
     ELSE p.provolatile = 'i' AND (p.prolang IN (12, 13) OR p.prosqlbody IS NOT NULL) END
"""
"""A condition on a row `p` of pg_proc, of PostgreSQL's own or of a superuser's extension."""
