"""The SQL that finds tables made LIKE a temporary one, which no target has.

A part of archiver.postgres.ddl_triggers. LIKE may copy all that a table has, and leaves no trace of what it copied:
such a table is not described but marked as lost, and comes from a base snapshot. Where the words only look like it, one
is taken that was not needed.
"""

from __future__ import annotations

from typing import Final, LiteralString

_LIKES_TEMPORARY: Final[LiteralString] = """
CREATE OR REPLACE FUNCTION archiver.likes_temporary(source text, bodies jsonb) RETURNS bool
LANGUAGE sql STABLE __CANONICAL__ AS $likes$
    SELECT EXISTS (
        SELECT FROM regexp_matches(
                concat_ws(' ', source, (SELECT string_agg(body, ' ') FROM jsonb_array_elements_text(bodies) AS body)),
                E'\\\\mlike\\\\s+(?:pg_temp\\\\w*\\\\s*[.]\\\\s*)?(?:(\\\\w+)|"((?:[^"]|"")+)")', 'gi') AS found
          JOIN pg_class c ON c.relname = coalesce(lower(found[1]), replace(found[2], '""', '"'))
         WHERE c.relnamespace = pg_my_temp_schema())
$likes$;
"""

FUNCTIONS: Final = (_LIKES_TEMPORARY,)
