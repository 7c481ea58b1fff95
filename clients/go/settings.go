package pgmq

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
)

const longestDelay = 12 * time.Hour

var (
	hostAndPort = regexp.MustCompile(`^(?:dns:(?://[^/]*/)?/?)?(?:\[[0-9a-fA-F:.%\w]+\]|[^\s:/\[\]]+):(\d{1,5})$`)
	schemes     = regexp.MustCompile(`^(?:unix:|unix-abstract:|[a-z][a-z0-9+.-]*://)`)
	metadataKey = regexp.MustCompile(`^[0-9A-Za-z_.-]+$`)
)

// checkTarget refuses what gRPC would take for something else: without a port it means 443.
func checkTarget(target string) error {
	if found := hostAndPort.FindStringSubmatch(target); found != nil {
		if port, _ := strconv.Atoi(found[1]); port >= 1 && port <= math.MaxUint16 {
			return nil
		}
	} else if scheme := schemes.FindString(target); scheme != "" && scheme != "dns://" && scheme != "http://" && scheme != "https://" {
		return nil
	}
	return refused(codes.InvalidArgument, "target", fmt.Sprintf("a target is host:port, unix:/path or dns:///name:port, and not %q", target), nil)
}

// checkMetadata refuses what gRPC would not send.
func checkMetadata(metadata map[string]string) error {
	for key, value := range metadata {
		if !metadataKey.MatchString(key) {
			return refused(codes.InvalidArgument, "metadata", fmt.Sprintf("%q is no key of metadata", key), nil)
		}
		if !strings.HasSuffix(strings.ToLower(key), "-bin") && strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }) {
			return refused(codes.InvalidArgument, "metadata", key+" is not printable ASCII, as metadata has to be", nil)
		}
	}
	return nil
}

// check refuses settings that cannot be.
func (s *settings) check() error {
	switch {
	case s.timeout < 0:
		return refused(codes.InvalidArgument, "timeout", "a timeout is above 0", nil)
	case s.codec == nil:
		return refused(codes.InvalidArgument, "codec", "there is no codec", nil)
	}
	return checkMetadata(s.metadata.fixed)
}

// check refuses options that cannot be.
func (o HandleOptions) check() error {
	switch {
	case o.Concurrency < 0:
		return refused(codes.InvalidArgument, "concurrency", "at least one message is handled at once", nil)
	case o.RetryDelay != Zero && (o.RetryDelay < 0 || o.RetryDelay > longestDelay):
		return refused(codes.InvalidArgument, "retry_delay", "a delay is up to 12 hours", nil)
	}
	return nil
}
