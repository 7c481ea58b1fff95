-- The schema of the servers themselves. Servers of several versions may work on it at once, so a migration only adds.
-- One that cannot help breaking older servers raises oldest_server to its own version, and those then refuse to use it.
CREATE TABLE pgmq_grpc.compatibility (
  one_row boolean PRIMARY KEY DEFAULT true CHECK (one_row),
  oldest_server integer NOT NULL
);

COMMENT ON TABLE pgmq_grpc.compatibility IS 'The oldest schema version whose servers may use this schema.';

INSERT INTO pgmq_grpc.compatibility (oldest_server) VALUES (1);

-- What was sent under which deduplication id. The key of a queue ends with the queue: its moment of creation tells it from
-- another of the same name. A transaction's key has the empty name and the moment -infinity, and keeps its results.
CREATE TABLE pgmq_grpc.deduplication (
  queue_name text COLLATE "C" NOT NULL,
  queue_created_at timestamp with time zone NOT NULL,
  deduplication_id text COLLATE "C" NOT NULL,
  content_hash bytea NOT NULL,
  msg_id bigint NOT NULL,
  expires_at timestamp with time zone NOT NULL,
  results jsonb,
  PRIMARY KEY (queue_name, queue_created_at, deduplication_id)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

COMMENT ON TABLE pgmq_grpc.deduplication IS 'Deduplication ids within their window, with the messages stored under them.';

-- For the removal of what has expired.
CREATE INDEX deduplication_expires_at ON pgmq_grpc.deduplication (expires_at);

-- Equal for texts that are equal as jsonb. Postgres renders those the same but for zeros at the end of fractions, which are
-- cut off here: 1.50 and 1.5 are one number. The first alternative steps over strings.
CREATE FUNCTION pgmq_grpc.content_hash(content jsonb) RETURNS bytea LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
SELECT sha256(convert_to(
  CASE WHEN content::text LIKE '%.%0%'
    THEN regexp_replace(content::text,
      '("(?:[^"\\]|\\.)*")|(-?[0-9]+\.[0-9]*[1-9])0+(?![0-9])|(-?[0-9]+)\.0+(?![0-9])', '\1\2\3', 'g')
    ELSE content::text END, 'UTF8'))
$$;
