-- The journal: what archiver's own triggers say travels in the stream as rows of this table, at their place in their
-- transaction. Nobody but its owner may write it, and that is what tells them from what anybody may say.
-- A row is deleted as soon as it is inserted, by its ctid: the table stays empty, the row is in the WAL all the same,
-- and a serializable transaction has read nothing.
CREATE TABLE IF NOT EXISTS archiver.journal (
    id uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid(),
    kind text NOT NULL,
    key text,
    about text,
    content text NOT NULL
);
-- It counts what could not even be written there. Like nothing else it needs no lock and survives a rollback.
CREATE SEQUENCE IF NOT EXISTS archiver.losses;
