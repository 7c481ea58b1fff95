package main

import (
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
	"time"
	"unicode/utf8"
)

// fits tells why what came is not what was wanted; it is empty if it is.
func fits(wanted, came any) string {
	switch wanted := wanted.(type) {
	case string:
		switch wanted {
		case "$any":
			return unless(!absent(came), "there is nothing")
		case "$absent":
			return unless(absent(came), "there is something")
		}
		return unless(wanted == came, "the texts differ")
	case json.Number:
		number, ok := came.(json.Number)
		return unless(ok && rational(wanted).Cmp(rational(number)) == 0, "the numbers differ")
	case []any:
		list, ok := came.([]any)
		if !ok || len(list) != len(wanted) {
			return fmt.Sprintf("it is no list of %d", len(wanted))
		}
		for i := range wanted {
			if why := fits(wanted[i], list[i]); why != "" {
				return fmt.Sprintf("%d: %s", i, why)
			}
		}
		return ""
	case map[string]any:
		for key, operand := range wanted {
			if strings.HasPrefix(key, "$") && len(wanted) == 1 {
				return matches(key, operand, came)
			}
		}
		m, ok := came.(map[string]any)
		if !ok {
			return "it is no map"
		}
		for key, item := range wanted {
			if why := fits(item, m[key]); why != "" {
				return key + ": " + why
			}
		}
		return ""
	case nil:
		return unless(came == nil, "it is not null")
	default:
		return unless(wanted == came, "the values differ")
	}
}

func matches(matcher string, operand, came any) string {
	list, isList := came.([]any)
	text, isText := came.(string)
	number, isNumber := came.(json.Number)
	switch matcher {
	case "$at_least":
		return unless(isNumber && rational(number).Cmp(rational(operand)) >= 0, "it is not so much")
	case "$at_most":
		return unless(isNumber && rational(number).Cmp(rational(operand)) <= 0, "it is more")
	case "$in_seconds":
		if !isNumber {
			return "it is no moment"
		}
		bounds := operand.([]any)
		since := new(big.Rat).Sub(rational(number), rational(moment(time.Now())))
		return unless(since.Cmp(rational(bounds[0])) >= 0 && since.Cmp(rational(bounds[1])) <= 0, "it is "+since.FloatString(3)+" seconds from now")
	case "$length":
		return unless(isList && len(list) == whole(operand) || isText && utf8.RuneCountInString(text) == whole(operand), "the length differs")
	case "$contains":
		if part, ok := operand.(string); ok && isText {
			return unless(strings.Contains(text, part), "it is not in the text")
		}
		for _, item := range list {
			if fits(operand, item) == "" {
				return ""
			}
		}
		return "it is not in the list"
	case "$not":
		return unless(fits(operand, came) != "", "it is just that")
	case "$unordered":
		wanted := operand.([]any)
		if !isList || len(list) != len(wanted) {
			return fmt.Sprintf("it is no list of %d", len(wanted))
		}
		return unless(paired(wanted, list), "the elements differ")
	}
	return "the matcher " + matcher + " is unknown"
}

// paired tells whether each wanted element can have one of the list for itself.
func paired(wanted, list []any) bool {
	if len(wanted) == 0 {
		return true
	}
	for i, item := range list {
		rest := append(append([]any{}, list[:i]...), list[i+1:]...)
		if fits(wanted[0], item) == "" && paired(wanted[1:], rest) {
			return true
		}
	}
	return false
}

func unless(ok bool, why string) string {
	if ok {
		return ""
	}
	return why
}

func absent(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case string:
		return v == ""
	case []any:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	}
	return false
}

func rational(v any) *big.Rat {
	number, ok := new(big.Rat).SetString(string(v.(json.Number)))
	if !ok {
		panic(fmt.Sprintf("%v is no number", v))
	}
	return number
}

func whole(v any) int {
	n, err := v.(json.Number).Int64()
	if err != nil {
		panic(err)
	}
	return int(n)
}

// seconds makes a span of a number of seconds.
func seconds(v any) time.Duration {
	nanoseconds := new(big.Rat).Mul(rational(v), big.NewRat(int64(time.Second), 1))
	return time.Duration(new(big.Int).Quo(nanoseconds.Num(), nanoseconds.Denom()).Int64())
}

// span makes a number of seconds of a span.
func span(d time.Duration) any {
	return json.Number(big.NewRat(int64(d), int64(time.Second)).FloatString(9))
}

// moment makes a number of seconds since 1970 of a moment; null of none.
func moment(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return json.Number(fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()))
}

func show(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	if len(text) > 600 {
		return string(text[:600]) + "…"
	}
	return string(text)
}
