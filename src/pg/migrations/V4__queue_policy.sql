-- What holds in a queue where a call leaves it open. The key ends with the queue, as that of a deduplication id does: a queue
-- that is dropped and made anew has no policy. NULL leaves a matter to the server's own default. Servers that do not know
-- this table do as if it were empty, and leave nothing behind that would have to be mended; so they may go on.
CREATE TABLE pgmq_grpc.queue_policy (
  queue_name text COLLATE "C" NOT NULL,
  queue_created_at timestamp with time zone NOT NULL,
  default_visibility_timeout_s integer CHECK (default_visibility_timeout_s BETWEEN 1 AND 43200),
  default_delay_ms bigint CHECK (default_delay_ms BETWEEN 0 AND 31536000000),
  default_wait_ms bigint CHECK (default_wait_ms BETWEEN 0 AND 50000),
  max_message_bytes integer CHECK (max_message_bytes BETWEEN 1 AND 3145728),
  dead_letter_queue text COLLATE "C",
  dead_letter_max_receives integer CHECK (dead_letter_max_receives BETWEEN 1 AND 1000),
  retry_backoff_minimum_ms bigint CHECK (retry_backoff_minimum_ms BETWEEN 1 AND 43200000),
  retry_backoff_maximum_ms bigint CHECK (retry_backoff_maximum_ms BETWEEN retry_backoff_minimum_ms AND 43200000),
  retry_backoff_multiplier double precision CHECK (retry_backoff_multiplier BETWEEN 1 AND 100),
  retry_backoff_jitter double precision CHECK (retry_backoff_jitter BETWEEN 0 AND 1),
  deduplication_window_ms bigint CHECK (deduplication_window_ms BETWEEN 100 AND 604800000),
  default_ordering text CHECK (default_ordering IN ('unordered', 'grouped', 'grouped_round_robin', 'grouped_head')),
  archive_retention_ms bigint CHECK (archive_retention_ms BETWEEN 1000 AND 315360000000),
  PRIMARY KEY (queue_name, queue_created_at),
  CONSTRAINT queue_policy_dead_letter CHECK ((dead_letter_queue IS NULL) = (dead_letter_max_receives IS NULL)),
  CONSTRAINT queue_policy_retry_backoff CHECK (num_nulls(retry_backoff_minimum_ms, retry_backoff_maximum_ms,
    retry_backoff_multiplier, retry_backoff_jitter) IN (0, 4))
);

COMMENT ON TABLE pgmq_grpc.queue_policy IS 'What holds in a queue where a call leaves it open, and what the servers do there by themselves.';

-- Which queues use a dead-letter queue.
CREATE INDEX queue_policy_dead_letter_queue ON pgmq_grpc.queue_policy (dead_letter_queue) WHERE dead_letter_queue IS NOT NULL;

-- Whoever changes a policy tells all servers with the same commit, plain SQL too.
CREATE FUNCTION pgmq_grpc.announce_policies() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('pgmq_grpc', '1 - policies');
  RETURN NULL;
END
$$;

CREATE TRIGGER announce_policies AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON pgmq_grpc.queue_policy
FOR EACH STATEMENT EXECUTE FUNCTION pgmq_grpc.announce_policies();
