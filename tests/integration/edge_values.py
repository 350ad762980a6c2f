"""Edge values of every built-in type, as text that its input function takes."""

from __future__ import annotations

from typing import Final

EDGES: Final[dict[str, list[str]]] = {
    "bool": ["t", "f"],
    "bytea": ["", r"\x00", r"\xdeadbeef00ff", r"\x5c785c6e5c5c"],
    '"char"': ["", "a", "\\", "\\200", "\\377", "'"],
    "name": ["", "a b", "ü" * 31, '"quoted"', "x" * 63],
    "int2": ["-32768", "32767", "0"],
    "int4": ["-2147483648", "2147483647", "0"],
    "int8": ["-9223372036854775808", "9223372036854775807", "0"],
    "float4": ["NaN", "Infinity", "-Infinity", "-0", "1e-45", "3.4028235e38", "0.1", "16777217"],
    "float8": ["NaN", "Infinity", "-Infinity", "-0", "5e-324", "1.7976931348623157e308", "0.1", "0.30000000000000004"],
    "numeric": [
        "NaN", "Infinity", "-Infinity", "0", "0.000", "1.0", "1.10", "-1e-16383",
        "9" * 100_000, "-" + "8" * 131_072 + "." + "7" * 16_383,
    ],
    "numeric(10,3)": ["-9999999.999", "0.001", "NaN"],
    "money": ["-92233720368547758.08", "92233720368547758.07", "0"],
    "text": ["", " ", "\\N", "\\.", "a\tb\nc\rd\\e\x01\x7f", "NULL", "null", '{"', "ü€𝄞", "x" * 9000, '"', "''"],
    "varchar(5)": ["", "a b  ", "ü€𝄞'\\"],
    "bpchar(5)": ["", "a", " a", "a    ", "ü\\"],
    "bpchar": ["", "a  "],
    "json": ['{"a":1, "a": 2,\t"b":[null,"\\u0041\\\\"]}', "null", '""', " 1 ", '"\\ud834\\udd1e\\u0000"'],
    "jsonb": ['{"a\\"b\\\\": "\\t\\n\\u0001ü𝄞", "": [[], {}, null, true, -0.0, 1e100]}', "null", '"\\\\N"', "1.10"],
    "jsonpath": ['$."a\\"b"[*] ? (@ > 1 && @ like_regex "^x\\\\.y" flag "i")', "strict $.a.**{2 to last}"],
    "xml": ["<a b=\"c&amp;'\">ü<![CDATA[ \\ ]]></a>", "text only", "<a/><b/>", "<?xml version=\"1.0\"?><a>\n\t</a>"],
    "uuid": ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"],
    "date": ["infinity", "-infinity", "4714-11-24 BC", "5874897-12-31", "0001-12-31 BC", "2024-02-29"],
    "time": ["00:00:00", "24:00:00", "23:59:59.999999"],
    "timetz": ["00:00:00+15:59:59", "24:00:00-15:59:59", "12:34:56.789012+05:30"],
    "timestamp": ["infinity", "-infinity", "4714-11-24 00:00:00 BC", "294276-12-31 23:59:59.999999", "2000-01-01"],
    "timestamp(2)": ["1999-12-31 23:59:59.999"],
    "timestamptz": [
        "infinity", "-infinity", "4714-11-24 00:00:00+00 BC", "294276-12-31 23:59:59.999999+00", "2026-03-29 01:30:00+01",
    ],
    "interval": [
        "178000000 years", "-178000000 years", "0", "-1 mon +2 days -03:04:05.678",
        "1 year -1 mon", "-00:00:00.000001",
    ],
    "interval hour to second(2)": ["12:34:56.789"],
    "bit": ["0", "1"],
    "bit(9)": ["101010101", "000000000"],
    "varbit": ["", "1", "0" * 5000 + "1"],
    "varbit(3)": ["", "10"],
    "inet": ["0.0.0.0/0", "10.1.2.3/8", "::1", "fe80::1:2/64", "255.255.255.255", "::ffff:1.2.3.4"],
    "cidr": ["0.0.0.0/0", "10.0.0.0/8", "::/0", "2001:db8::/32"],
    "macaddr": ["00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff"],
    "macaddr8": ["00:00:00:00:00:00:00:00", "08:00:2b:01:02:03:04:05"],
    "point": ["(0,0)", "(-0,NaN)", "(Infinity,-Infinity)", "(1e-300,0.1)"],
    "line": ["{1,-1,0}", "{0.1,0,-1e300}"],
    "lseg": ["[(0,0),(1,1)]", "[(0.1,-0),(Infinity,2)]"],
    "box": ["(1,1),(0,0)", "(Infinity,0.1),(-Infinity,-0.1)"],
    "path": ["[(0,0),(1,1)]", "((0,0),(1,1),(2,0.1))", "[(0,0)]"],
    "polygon": ["((0,0))", "((0,0),(1,1),(2,0.1))"],
    "circle": ["<(0,0),0>", "<(0.1,-0),1e300>", "<(0,0),Infinity>"],
    "tsvector": ["", "'a''b':1A,2B,16383 'c d' 'e\\\\f':3", "simple words:4C"],
    "tsquery": ["", "'a''b':*A & !( 'c d' | e <3> f )", "x <-> y"],
    "pg_lsn": ["0/0", "FFFFFFFF/FFFFFFFF"],
    "oid": ["0", "4294967295"],
    "xid": ["0", "4294967295"],
    "xid8": ["0", "18446744073709551615"],
    "cid": ["0", "4294967295"],
    "tid": ["(0,0)", "(4294967295,65535)"],
    "int2vector": ["", "1 -2 3"],
    "oidvector": ["", "0 4294967295"],
    "refcursor": ["", 'a "cursor"'],
    "aclitem": ["=r/postgres", "postgres=arwdDxt*/postgres"],
    "pg_snapshot": ["1:1:", "10:20:10,14,15"],
    "txid_snapshot": ["1:1:", "10:20:10,14,15"],
    "regclass": ["-", "pg_catalog.pg_class", "pg_toast.pg_toast_1255"],
    "regcollation": ["-", 'pg_catalog."C"'],
    "regconfig": ["-", "pg_catalog.english"],
    "regdictionary": ["-", "pg_catalog.simple"],
    "regnamespace": ["-", "pg_catalog", "public"],
    "regoper": ["0", "pg_catalog.||/"],
    "regoperator": ["0", "pg_catalog.=(integer,integer)", "pg_catalog.-(NONE,integer)"],
    "regproc": ["-", "pg_catalog.now"],
    "regprocedure": ["-", "pg_catalog.now()", "pg_catalog.format(text,\"any\")"],
    "regrole": ["-", "postgres"],
    "regtype": ["-", "integer", 'pg_catalog."char"', "timestamp with time zone", "text[]"],
    "int4range": ["empty", "(,)", "[1,5)", "[-2147483648,)", "(,2147483647)"],
    "int8range": ["empty", "(,)", "[-9223372036854775808,9223372036854775807)"],
    "numrange": ["empty", "[NaN,NaN]", "(0.10,Infinity]", "[1.0,1.00]"],
    "daterange": ["empty", "[infinity,]", "[2024-01-01,infinity)", "(-infinity,2024-01-01)"],
    "tsrange": ["empty", '["2024-01-01 00:00:00",infinity]', "(,)"],
    "tstzrange": ["empty", '["2024-01-01 00:00:00+00",infinity)', '(,"4714-11-24 00:00:00+00 BC"]'],
    "int4multirange": ["{}", "{(,)}", "{[1,3),[5,7)}"],
    "int8multirange": ["{}", "{[1,3),[5,7)}"],
    "nummultirange": ["{}", "{[0.10,1),(2,Infinity]}"],
    "datemultirange": ["{}", "{(,2024-01-01),[2025-01-01,infinity)}"],
    "tsmultirange": ["{}", '{["2024-01-01 00:00:00",infinity]}'],
    "tstzmultirange": ["{}", '{(,"2024-01-01 00:00:00+00"),["2025-01-01 00:00:00+00",)}'],
}  # fmt: skip
"""By type, with modifiers where they matter."""

EDGES_SINCE: Final[dict[int, dict[str, list[str]]]] = {
    15: {"interval": ["-178000000 years 2147483647 days -2562047788:00:54.775807"]},
    17: {"interval": ["infinity", "-infinity"]},
}
"""What older versions do not take."""

WITHOUT_VALUES: Final[dict[str, str]] = {
    "pg_node_tree": "its input function refuses",
    "pg_ndistinct": "its input function refuses",
    "pg_dependencies": "its input function refuses",
    "pg_mcv_list": "its input function refuses",
    "pg_brin_bloom_summary": "its input function refuses",
    "pg_brin_minmax_multi_summary": "its input function refuses",
    "gtsvector": "its input function refuses",
}
"""Types that no row of a user's table can hold, and why."""

USERS_TYPES: Final = """
CREATE SCHEMA "My Types";
CREATE TYPE "My Types"."mood '1'" AS ENUM ('', 'it''s', 'a"b', 'ü,{}');
CREATE DOMAIN "My Types".positive AS numeric(8,2) CHECK (VALUE > 0);
CREATE DOMAIN "My Types".words AS text[] NOT NULL;
CREATE TYPE "My Types".inner_pair AS ("a b" int, c text);
CREATE TYPE "My Types".pair AS (p "My Types".inner_pair, m "My Types"."mood '1'"[], d "My Types".positive);
CREATE TYPE "My Types".span AS RANGE (subtype = float8, subtype_diff = float8mi);
CREATE DOMAIN "My Types".pairs AS "My Types".pair[];
CREATE TYPE "My Types".none AS ();
"""
USERS_EDGES: Final[dict[str, list[str]]] = {
    '"My Types"."mood \'1\'"': ["", "it's", 'a"b', "ü,{}"],
    '"My Types".positive': ["0.01", "999999.99"],
    '"My Types".words': ["{}", "{NULL}", '{"NULL","","a\\\\b\\""}'],
    '"My Types".pair': ["(,,)", '("(1,""a,\\\\\\\\b"")","{\\"\\",\\"ü,{}\\",NULL}",1.00)', '("(,)",{},)'],
    '"My Types".span': ["empty", "[NaN,NaN]", "(0.1,Infinity)"],
    '"My Types".pairs': ["{}", '{NULL,"(,,)"}'],
    '"My Types".none': ["()"],
}
