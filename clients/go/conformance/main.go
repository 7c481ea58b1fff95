// Command conformance runs the cases that every client passes, through the Go client.
//
//	conformance DIRECTORY
//
// runs the files *.yaml of the directory against the server at PGMQ_GRPC_TARGET, and ends with the line
// "N passed, N failed".
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	pgmq "github.com/pgmq-grpc/pgmq-grpc/clients/go"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: conformance DIRECTORY")
		os.Exit(2)
	}
	passed, failed, err := run(os.Args[1], os.Getenv("CONFORMANCE_ONLY"), os.Getenv("CONFORMANCE_RESULTS"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		failed = max(failed, 1)
	}
	fmt.Printf("%d passed, %d failed\n", passed, failed)
	if failed > 0 {
		os.Exit(1)
	}
}

func run(directory, only, results string) (passed, failed int, err error) {
	files, err := filepath.Glob(filepath.Join(directory, "*.yaml"))
	if err != nil || len(files) == 0 {
		return 0, 0, fmt.Errorf("there are no cases in %s (%v)", directory, err)
	}
	client, err := pgmq.Connect("")
	if err != nil {
		return 0, 0, err
	}
	defer client.Close()
	var lines strings.Builder
	number := 0
	for _, file := range files {
		cases, err := readCases(file)
		if err != nil {
			return passed, failed, fmt.Errorf("%s: %w", file, err)
		}
		for _, c := range cases {
			number++
			if !strings.Contains(c.name, only) {
				continue
			}
			verdict := "pass"
			if err := c.run(client, fmt.Sprintf("go%d_%d_", os.Getpid()%100000, number)); err != nil {
				fmt.Printf("%s: %v\n", c.name, err)
				verdict = "fail"
				failed++
			} else {
				passed++
			}
			fmt.Fprintf(&lines, "%s\t%s\n", verdict, c.name)
		}
	}
	if results != "" {
		err = os.WriteFile(results, []byte(lines.String()), 0o666)
	}
	return passed, failed, err
}
