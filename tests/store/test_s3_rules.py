"""Rules of a bucket that would delete, move or lock the archive are named, asked of a real server and of its answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from archiver.embedded import S3Server
from archiver.errors import AccessDenied
from archiver.store.s3 import S3Store
from archiver.store.s3_rules import lifecycle_hazards, retention_hazards
from tests.fix_cli import Site
from tests.fix_servers import MakeBucket, s3_store


def rule(prefix: str = "", **fields: Any) -> dict[str, Any]:
    return {"ID": "old", "Status": "Enabled", "Filter": {"Prefix": prefix}, "Expiration": {"Days": 30}} | fields


HIT = "lifecycle rule 'old' deletes objects of the archive: 30 days after they were written"
RULES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "everything": (rule(), [HIT]),
    "the archive": (rule("shop/"), [HIT]),
    "a part of it": (rule("shop/manifests/"), [HIT]),
    "what is above": (rule("sh"), [HIT]),
    "something else": (rule("other/"), []),
    "disabled": (rule(Status="Disabled"), []),
    "tagged": (rule(Filter={"And": {"Prefix": "shop/", "Tags": [{"Key": "a", "Value": "b"}]}}), []),
    "older form": (rule(Filter=None, Prefix="shop/"), [HIT]),
    "large ones": (rule(Filter={"And": {"Prefix": "shop/", "ObjectSizeGreaterThan": 9}}), [HIT]),
    "markers": (rule(Expiration={"ExpiredObjectDeleteMarker": True}), []),
    "versions": (rule(Expiration={}, NoncurrentVersionExpiration={"NoncurrentDays": 1}), []),
    "cold": (
        rule(Expiration={}, Transitions=[{"Days": 1, "StorageClass": "GLACIER"}]),
        ["lifecycle rule 'old' moves objects of the archive to GLACIER, where they cannot be read"],
    ),
    "cooler": (rule(Expiration={}, Transitions=[{"Days": 30, "StorageClass": "STANDARD_IA"}]), []),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_named_where_it_hits_the_archive(name: str) -> None:
    given, expected = RULES[name]
    assert list(lifecycle_hazards({"Rules": [given]}, "shop/")) == expected


@pytest.mark.parametrize(("default", "shown"), [({"Days": 7}, "7 days"), ({"Years": 1}, "1 years")])
def test_a_default_retention_is_named(default: Mapping[str, Any], shown: str) -> None:
    answer = {"ObjectLockConfiguration": {"Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", **default}}}}
    [found] = retention_hazards(answer)
    assert f"for {shown} (compliance)" in found
    assert list(retention_hazards({})) == []


async def test_a_bucket_is_asked_for_its_rules(make_bucket: MakeBucket, s3_servers: tuple[S3Server, S3Server]) -> None:
    bucket, server = make_bucket(), s3_servers[0]
    store = s3_store(server, bucket, "shop")
    assert await store.hazards() == []
    rules = {"Rules": [rule("shop/"), rule("other/", ID="another")]}
    server.client().put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=rules)
    assert await store.hazards() == [HIT]
    await store.close()


def test_check_names_the_rules_of_buckets(site: Site) -> None:
    rules = {"Rules": [rule("shop/")]}
    site.servers[0].client().put_bucket_lifecycle_configuration(Bucket=site.bucket, LifecycleConfiguration=rules)
    checks = json.loads(site.run("check", "--json").stdout)["checks"]
    found = {each["name"]: (each["status"], each["detail"]) for each in checks}
    assert found["rules of fra"] == ("warn", HIT)
    assert found["rules of dub"] == ("ok", "none deletes, moves or locks the archive's objects")


async def test_a_bucket_that_does_not_tell_is_not_taken_for_one_without_rules(
    make_bucket: MakeBucket, s3_servers: tuple[S3Server, S3Server]
) -> None:
    server = s3_servers[0]
    store = S3Store(
        "region", make_bucket(), "shop", aws_region=None, endpoint=server.endpoint, access_key="no", secret_key="no"
    )
    with pytest.raises(AccessDenied):
        await store.hazards()
    await store.close()
