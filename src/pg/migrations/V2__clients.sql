-- Who calls which server, for ListClients. It is not worth the log: after a crash the servers write it anew.
CREATE UNLOGGED TABLE pgmq_grpc.replica (
  replica text COLLATE "C" PRIMARY KEY,
  seen_at timestamp with time zone NOT NULL
) WITH (fillfactor = 50);

COMMENT ON TABLE pgmq_grpc.replica IS 'The servers that have clients, and when each was last alive.';

-- last_seen is NULL as long as the client is seen again and again: then its replica's seen_at stands for it.
CREATE UNLOGGED TABLE pgmq_grpc.client (
  replica text COLLATE "C" NOT NULL,
  name text COLLATE "C" NOT NULL,
  role text COLLATE "C" NOT NULL,
  queue text COLLATE "C" NOT NULL,
  address text COLLATE "C" NOT NULL,
  in_flight integer NOT NULL,
  since timestamp with time zone NOT NULL,
  last_seen timestamp with time zone,
  PRIMARY KEY (replica, name, role, queue, address)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0);

COMMENT ON TABLE pgmq_grpc.client IS 'Who sent or consumed within the last minute, by replica.';
