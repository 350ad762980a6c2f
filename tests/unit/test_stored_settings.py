"""How a stored setting is written as SQL."""

from __future__ import annotations

import pytest

from archiver.postgres.stored_settings import assignment


@pytest.mark.parametrize(
    ("stored", "written"),
    [
        ("work_mem=7MB", "\"work_mem\" TO '7MB'"),
        ('my.own=a=b, "c"', '"my"."own" TO \'a=b, "c"\''),
        ("DateStyle=SQL, DMY", "\"DateStyle\" TO 'SQL, DMY'"),
        ('search_path="$user", public', "\"search_path\" TO '$user', 'public'"),
        ('search_path="Odd ""x""; y", a', "\"search_path\" TO 'Odd \"x\"; y', 'a'"),
        ('search_path="a,b",Folded', "\"search_path\" TO 'a,b', 'folded'"),
        ('search_path=""', "\"search_path\" TO ''"),
        ("search_path=", "\"search_path\" TO ''"),
        ('search_path="a', '"search_path" TO \'"a\''),
        ("search_path=a,,b", "\"search_path\" TO 'a,,b'"),
        ("session_preload_libraries=$libdir/Own, b", "\"session_preload_libraries\" TO '$libdir/Own', 'b'"),
    ],
)
def test_a_setting_is_a_literal_and_a_list_has_one_for_each_element(stored: str, written: str) -> None:
    assert assignment(stored).as_string() == written
