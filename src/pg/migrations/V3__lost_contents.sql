-- A crash of the database empties unlogged queues, and this table with them. The number stands for what such queues hold: it is
-- drawn anew by whoever first needs it after a crash, and ids that were noted with another one are void.
CREATE UNLOGGED TABLE pgmq_grpc.unlogged_contents (
  one_row boolean PRIMARY KEY DEFAULT true CHECK (one_row),
  contents bigint NOT NULL
);

COMMENT ON TABLE pgmq_grpc.unlogged_contents IS 'A number that a crash of the database takes away, together with what unlogged queues hold.';

INSERT INTO pgmq_grpc.unlogged_contents (contents) VALUES (0);

-- contents is 0 for queues that a crash does not empty. sent_to belongs to a transaction: the queues to which it sent, each with
-- its moment of creation and its contents.
ALTER TABLE pgmq_grpc.deduplication ADD COLUMN contents bigint NOT NULL DEFAULT 0, ADD COLUMN sent_to jsonb;

-- A server that does not know these columns would leave in them what an earlier life of the key has noted.
UPDATE pgmq_grpc.compatibility SET oldest_server = 3;
