-- A database with one of everything that a base snapshot must carry: read by test_base_snapshot.py.
-- Roles archiver_test_owner and archiver_test_reader exist.
SET search_path = public;
CREATE SCHEMA shop;
COMMENT ON SCHEMA shop IS 'goods; and
--
-- Name: fake; Type: TABLE; Schema: public; Owner: nobody
--

no table here';
CREATE SCHEMA "Odd ""Names""; Type: TABLE";
CREATE EXTENSION IF NOT EXISTS pg_trgm WITH SCHEMA shop;

CREATE TYPE shop.mood AS ENUM ('sad', 'ok', 'it''s -- fine');
CREATE DOMAIN shop.positive AS integer CONSTRAINT above_zero CHECK (VALUE > 0);
CREATE TYPE shop.pair AS (x integer, y text);
COMMENT ON TYPE shop.pair IS 'two';

CREATE FUNCTION shop.tricky(a text) RETURNS text LANGUAGE plpgsql AS $tricky$
BEGIN
    -- a header that is none:

--
-- Name: orders; Type: TABLE; Schema: shop; Owner: postgres
--

    RETURN $q$ '"; $tricky-not$ $q$ || a || E'\'';
END
$tricky$;
COMMENT ON FUNCTION shop.tricky(text) IS 'quotes '' and \ backslash';
CREATE FUNCTION shop.plain_sql(integer) RETURNS integer LANGUAGE sql IMMUTABLE RETURN $1 * 2;
CREATE FUNCTION shop.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.touched := 1; RETURN NEW; END';
CREATE FUNCTION shop.on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN NULL; END$$;

CREATE SEQUENCE shop.descending INCREMENT BY -5 MAXVALUE -1 MINVALUE -100000 START -10;
CREATE SEQUENCE shop.untouched START 500;

CREATE TABLE shop.customers (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    feeling shop.mood DEFAULT 'ok',
    favourite bigint,
    born date,
    balance money,
    seen timestamptz,
    elapsed interval,
    blob bytea,
    ratio double precision,
    doc jsonb,
    name_length integer GENERATED ALWAYS AS (length(name)) STORED,
    touched integer
);
COMMENT ON COLUMN shop.customers.born IS 'a date';
CREATE TABLE shop.orders (
    id serial PRIMARY KEY,
    customer bigint NOT NULL REFERENCES shop.customers DEFERRABLE INITIALLY DEFERRED,
    quantity shop.positive,
    item shop.pair,
    tags text[],
    CONSTRAINT sensible CHECK (quantity < 1000000)
);
ALTER TABLE shop.customers ADD CONSTRAINT favourite_order FOREIGN KEY (favourite) REFERENCES shop.orders (id);
COMMENT ON CONSTRAINT favourite_order ON shop.customers IS 'a cycle';
CREATE INDEX orders_customer ON shop.orders (customer) WHERE quantity > 1;
CREATE INDEX customers_lower ON shop.customers (lower(name));
CREATE INDEX customers_trgm ON shop.customers USING gin (name shop.gin_trgm_ops);
ALTER TABLE shop.orders CLUSTER ON orders_pkey;
CREATE STATISTICS shop.order_stats ON customer, quantity FROM shop.orders;
ALTER TABLE shop.orders ADD CONSTRAINT later CHECK (quantity <> 13) NOT VALID;

CREATE TABLE shop.no_columns ();
CREATE TABLE shop.dropped_column (a integer, gone text, b text);
ALTER TABLE shop.dropped_column DROP COLUMN gone;
CREATE TABLE shop.keyless (k text, v text);
ALTER TABLE shop.keyless REPLICA IDENTITY FULL;
CREATE TABLE shop.by_index (k text NOT NULL, v text);
CREATE UNIQUE INDEX by_index_k ON shop.by_index (k);
ALTER TABLE shop.by_index REPLICA IDENTITY USING INDEX by_index_k;
CREATE UNLOGGED TABLE shop.scratch (id integer PRIMARY KEY, note text);
CREATE TABLE "Odd ""Names""; Type: TABLE"."select; -- 'it'" ("Key" integer PRIMARY KEY, "a "" b" text, "from" text);
CREATE TABLE shop.parent (p integer);
CREATE TABLE shop.child (c integer) INHERITS (shop.parent);

CREATE TABLE shop.events (id bigint, at timestamptz NOT NULL, what text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE shop.events_2024 PARTITION OF shop.events FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE shop.events_rest PARTITION OF shop.events DEFAULT PARTITION BY HASH (id);
CREATE TABLE shop.events_rest_0 PARTITION OF shop.events_rest FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE shop.events_rest_1 PARTITION OF shop.events_rest FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE INDEX events_what ON shop.events (what);

CREATE VIEW shop.order_counts AS SELECT c.id, c.name, c.born, count(*) FROM shop.customers c JOIN shop.orders o ON o.customer = c.id GROUP BY c.id;
CREATE VIEW shop.counts_again AS SELECT * FROM shop.order_counts WHERE count > 1;
CREATE MATERIALIZED VIEW shop.postponed AS SELECT c.id, c.name, count(*) FROM shop.customers c GROUP BY c.id;
CREATE MATERIALIZED VIEW shop.unpopulated AS SELECT 1 AS one WITH NO DATA;
CREATE INDEX postponed_name ON shop.postponed (name);
CREATE FUNCTION shop.grouped() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM (SELECT c.id, c.name FROM shop.customers c GROUP BY c.id) x; END;

CREATE TRIGGER touch BEFORE UPDATE ON shop.customers FOR EACH ROW EXECUTE FUNCTION shop.touch();
COMMENT ON TRIGGER touch ON shop.customers IS 'touches';
ALTER TABLE shop.customers DISABLE TRIGGER touch;
CREATE RULE protect AS ON DELETE TO shop.keyless DO INSTEAD NOTHING;
CREATE POLICY own ON shop.customers FOR SELECT TO archiver_test_reader USING (name = CURRENT_USER);
CREATE POLICY everyone ON shop.customers USING (true);
ALTER TABLE shop.customers ENABLE ROW LEVEL SECURITY;
CREATE EVENT TRIGGER user_ddl ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION shop.on_ddl();
CREATE PUBLICATION user_publication FOR TABLE shop.orders WHERE (id > 5), TABLES IN SCHEMA "Odd ""Names""; Type: TABLE";

CREATE FOREIGN DATA WRAPPER dummy;
CREATE SERVER elsewhere FOREIGN DATA WRAPPER dummy;
CREATE USER MAPPING FOR archiver_test_reader SERVER elsewhere OPTIONS (secret 'x');
CREATE FOREIGN TABLE shop.remote (id integer) SERVER elsewhere;

ALTER TABLE shop.orders OWNER TO archiver_test_owner;
GRANT SELECT, INSERT ON shop.orders TO archiver_test_reader;
GRANT SELECT (id, name) ON shop.customers TO archiver_test_reader;
GRANT USAGE ON SCHEMA shop TO PUBLIC;
GRANT SELECT ON shop.keyless TO archiver_test_owner WITH GRANT OPTION;
SET SESSION AUTHORIZATION archiver_test_owner;
GRANT SELECT ON shop.keyless TO archiver_test_reader;
RESET SESSION AUTHORIZATION;
ALTER DEFAULT PRIVILEGES FOR ROLE archiver_test_owner IN SCHEMA shop GRANT SELECT ON TABLES TO archiver_test_reader;
REVOKE EXECUTE ON FUNCTION shop.tricky(text) FROM PUBLIC;

CREATE SCHEMA archiver;
CREATE TABLE archiver.state (id integer PRIMARY KEY);
INSERT INTO archiver.state VALUES (1);
CREATE FUNCTION archiver.capture() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN NULL; END$$;
COMMENT ON SCHEMA archiver IS 'ours';
COMMENT ON FUNCTION archiver.capture() IS 'ours too';
GRANT USAGE ON SCHEMA archiver TO PUBLIC;
CREATE EVENT TRIGGER archiver_ddl ON ddl_command_end EXECUTE FUNCTION archiver.capture();
COMMENT ON EVENT TRIGGER archiver_ddl IS 'ours as well';
CREATE PUBLICATION archiver_shop FOR ALL TABLES;
COMMENT ON PUBLICATION archiver_shop IS 'ours again';

INSERT INTO shop.customers (name, feeling, born, balance, seen, elapsed, blob, ratio, doc)
SELECT 'name ' || i || E' \t\n\\ü', 'it''s -- fine', date '2000-01-01' + i, (i * 1.01)::numeric::money, now() + i * interval '1 s',
       i * interval '1 month 2 hours', decode(md5(i::text), 'hex'), 1.0 / (i + 1), jsonb_build_object('i', i)
FROM generate_series(0, 1999) i;
INSERT INTO shop.orders (customer, quantity, item, tags)
SELECT i % 2000 + 1, i + 20, ROW(i, NULL)::shop.pair, ARRAY['a', NULL, 'c d'] FROM generate_series(0, 4999) i;
UPDATE shop.customers SET favourite = id WHERE id % 7 = 0;
INSERT INTO shop.no_columns DEFAULT VALUES;
INSERT INTO shop.no_columns DEFAULT VALUES;
INSERT INTO shop.dropped_column VALUES (1, 'one'), (2, NULL), (3, '\N'), (4, '');
INSERT INTO shop.keyless VALUES ('same', 'same'), ('same', 'same');
INSERT INTO shop.by_index VALUES ('a', 'b');
INSERT INTO shop.scratch VALUES (1, 'lost on restore');
INSERT INTO "Odd ""Names""; Type: TABLE"."select; -- 'it'" VALUES (1, 'x', 'y');
INSERT INTO shop.parent VALUES (1), (2);
INSERT INTO shop.child VALUES (3, 4);
INSERT INTO shop.events SELECT i, timestamptz '2024-06-01' + i * interval '1 day', 'event' FROM generate_series(1, 500) i;
REFRESH MATERIALIZED VIEW shop.postponed;
SELECT nextval('shop.descending'), nextval('shop.descending');
