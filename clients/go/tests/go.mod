module github.com/pgmq-grpc/pgmq-grpc/clients/go/tests

go 1.24.0

require (
	github.com/jackc/pgx/v5 v5.8.0
	github.com/pgmq-grpc/pgmq-grpc/clients/go v0.1.0
	google.golang.org/grpc v1.80.0
)

require (
	github.com/jackc/pgpassfile v1.0.0 // indirect
	github.com/jackc/pgservicefile v0.0.0-20240606120523-5a60cdf6a761 // indirect
	golang.org/x/net v0.49.0 // indirect
	golang.org/x/sys v0.40.0 // indirect
	golang.org/x/text v0.33.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260120221211-b8f7ae30c516 // indirect
	google.golang.org/protobuf v1.36.11 // indirect
)

replace github.com/pgmq-grpc/pgmq-grpc/clients/go => ../
