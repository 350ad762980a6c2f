"""`python -m tests.soak`: random faults under load for so long, or so many; then everything must equal the source.

The judge: after each fault nothing may be confirmed that the regions which answer do not hold; at the end a restore of the
latest state equals the source table by table, no gap is recorded, and `verify --read-data` finds nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable

from archiver.embedded import S3Server
from tests.dumps import difference, pg_dump
from tests.fault_proxy import FAULTS as FAULTS_OF_REQUESTS
from tests.soak.world import World

POLICIES: dict[str, dict[str, str]] = {
    "all": {"ack": "all"},
    "degrade": {"ack": "all", "degrade_after": "2s"},
    "any": {"ack": "any"},
}
Fault = Callable[[World, random.Random], None]


def kill_daemon(world: World, chance: random.Random) -> None:
    time.sleep(chance.uniform(0.0, 1.5))
    world.kill_daemon()
    world.start_daemon()


def stop_daemon(world: World, _chance: random.Random) -> None:
    assert world.daemon is not None
    world.daemon.terminate()
    world.daemon.wait(60)
    world.start_daemon()


def kill_region(world: World, chance: random.Random) -> None:
    region = chance.choice(world.regions)
    region.kill()
    time.sleep(chance.uniform(0.5, 8))
    region.start()


def freeze_region(world: World, chance: random.Random) -> None:
    region = chance.choice(world.regions)
    region.freeze()
    time.sleep(chance.uniform(0.5, 15))
    region.thaw()


def kill_both_regions(world: World, chance: random.Random) -> None:
    for region in world.regions:
        region.kill()
    time.sleep(chance.uniform(0.5, 5))
    for region in world.regions:
        region.start()


def disturb_requests(world: World, chance: random.Random) -> None:
    """What goes to the regions and comes from them is refused, lost, late, slow, cut or altered."""
    for proxy in chance.choice([world.proxies, world.proxies[:1], world.proxies[1:]]):
        proxy.faults = dict.fromkeys(chance.sample(list(FAULTS_OF_REQUESTS), 3), 0.15)
    time.sleep(chance.uniform(1, 10))
    for proxy in world.proxies:
        proxy.faults = {}


def restart_source(world: World, chance: random.Random) -> None:
    world.stop_load()
    world.source.restart(chance.choice(["fast", "immediate"]))  # type: ignore[arg-type]


def cut_stream(world: World, _chance: random.Random) -> None:
    world.ask("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active AND database = 'soak'")


def take_snapshot(world: World, _chance: random.Random) -> None:
    world.archiver("snapshot", allowed={4})  # a region that was just started again may not answer yet


def alter(world: World, chance: random.Random) -> None:
    world.psql(f"ALTER TABLE note ADD COLUMN c{chance.randrange(10**9)} int DEFAULT 7")


def write_much(world: World, chance: random.Random) -> None:
    """One transaction that is streamed, and at times rolled back."""
    end = chance.choice(["COMMIT", "ROLLBACK"])
    rows = chance.randrange(1000, 60_000)
    insert = f"INSERT INTO ledger (client, delta) SELECT -1, i FROM generate_series(1, {rows}) i"
    world.psql(f"BEGIN; {insert}; {end};")


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        kill_daemon,
        stop_daemon,
        kill_region,
        freeze_region,
        kill_both_regions,
        disturb_requests,
        restart_source,
        cut_stream,
        take_snapshot,
        alter,
        write_much,
    )
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="how long faults go on")
    parser.add_argument("--cycles", type=int, help="how many faults instead")
    parser.add_argument("--faults", default=",".join(FAULTS), help="which; by default all")
    parser.add_argument("--policy", choices=POLICIES, default="degrade", help="the durability policy")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rate", type=int, default=150, help="transactions a second")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}, policy {arguments.policy}", flush=True)
    world = World(POLICIES[arguments.policy], arguments.clients, arguments.rate)
    try:
        world.prepare()
        done, seconds = soak(world, arguments)
        report = judge(world)
    finally:
        world.close()
    report |= {
        "faults": dict(done),
        "seconds": round(seconds),
        "daemon_starts": world.starts,
        "daemon_ended": world.ended,
        "seed": arguments.seed,
    }
    print(json.dumps(report, indent=2))
    return 0 if report["equal"] else 1


def soak(world: World, arguments: argparse.Namespace) -> tuple[Counter[str], float]:
    chance = random.Random(arguments.seed)
    names = arguments.faults.split(",")
    done: Counter[str] = Counter()
    started = time.monotonic()
    world.start_daemon()
    world.start_load()
    world.catch_up()
    while (done.total() < arguments.cycles) if arguments.cycles else (time.monotonic() - started < arguments.seconds):
        name = chance.choice(names)
        FAULTS[name](world, chance)
        done[name] += 1
        world.start_load()
        time.sleep(chance.uniform(0, 1))
        world.require_daemon()
        if done.total() % 20 == 0:
            world.catch_up()
            print(f"{round(time.monotonic() - started)} s, {done.total()} faults", flush=True)
    return done, time.monotonic() - started


def judge(world: World) -> dict[str, object]:
    """Everything back, everything archived: is the restored database the source?"""
    world.stop_load()
    world.catch_up()
    wait_until_whole(world)
    stop_daemon(world, random.Random(0))
    confirmed = world.confirmed()
    info = json.loads(world.archiver("info", "--json"))
    world.source.execute("CREATE DATABASE restored")
    restored = world.source.dsn("restored")
    result = json.loads(world.archiver("restore", "--into", restored, "--latest", "--yes", "--json"))
    verified = json.loads(world.archiver("verify", "--read-data", "--json"))
    found = difference(pg_dump(restored), pg_dump(world.dsn))
    print(found[:4000], file=sys.stderr)
    return {
        "equal": not found and verified["ok"] and not info["gaps"],
        "gaps": len(info["gaps"]),
        "confirmed": str(confirmed),
        "last_commit": result["result"]["last_commit"],
        "replayed": result["result"]["transactions_replayed"],
        "ledger_rows": world.ask("SELECT count(*) FROM ledger"),
        "manifests": verified["manifests"],
        "findings": verified["findings"],
    }


def wait_until_whole(world: World, seconds: float = 180) -> None:
    """Regions that were behind are repaired. The daemon goes on meanwhile: the second listing may hold more."""
    deadline = time.monotonic() + seconds
    while True:
        first, second = (set(list_keys(region)) for region in world.regions)
        differing = {key for key in first ^ second if key <= max(first)}
        if not differing:
            return
        if time.monotonic() > deadline:
            some = sorted(differing)[:5]
            raise RuntimeError(f"{len(differing)} manifests are in one region only, {some}: {world.log()}")
        time.sleep(1)


def list_keys(region: S3Server) -> list[str]:
    """The manifests that a region holds."""
    client = region.client()
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="soak", Prefix="shop/manifests/")
    return [item["Key"] for page in pages for item in page.get("Contents", [])]


if __name__ == "__main__":
    sys.exit(main())
