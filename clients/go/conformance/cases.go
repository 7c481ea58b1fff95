package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	pgmq "github.com/pgmq-grpc/pgmq-grpc/clients/go"
)

// How long a case may last.
const caseLimit = 120 * time.Second

// aCase is a case as the file has it. Values are nil, bool, string, json.Number, []any and map[string]any.
type aCase struct {
	name   string
	queues map[string]any
	names  []string
	steps  []map[string]any
}

func readCases(file string) ([]aCase, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var document yaml.Node
	if err := yaml.Unmarshal(data, &document); err != nil {
		return nil, err
	}
	whole, err := value(document.Content[0])
	if err != nil {
		return nil, err
	}
	var cases []aCase
	for _, one := range whole.([]any) {
		c := aCase{queues: map[string]any{}}
		for key, value := range one.(map[string]any) {
			switch key {
			case "name":
				c.name = value.(string)
			case "queues":
				if queues, ok := value.(map[string]any); ok {
					c.queues = queues
					continue
				}
				for _, queue := range value.([]any) {
					c.queues[queue.(string)] = map[string]any{}
				}
			case "names":
				for _, name := range value.([]any) {
					c.names = append(c.names, name.(string))
				}
			case "steps":
				for _, step := range value.([]any) {
					c.steps = append(c.steps, step.(map[string]any))
				}
			default:
				return nil, fmt.Errorf("unknown key %q of a case", key)
			}
		}
		cases = append(cases, c)
	}
	return cases, nil
}

// value makes a value of a node; numbers keep their digits.
func value(node *yaml.Node) (any, error) {
	switch node.Kind {
	case yaml.AliasNode:
		return value(node.Alias)
	case yaml.SequenceNode:
		list := []any{}
		for _, item := range node.Content {
			v, err := value(item)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		return list, nil
	case yaml.MappingNode:
		m := map[string]any{}
		for i := 0; i < len(node.Content); i += 2 {
			v, err := value(node.Content[i+1])
			if err != nil {
				return nil, err
			}
			m[node.Content[i].Value] = v
		}
		return m, nil
	}
	switch node.Tag {
	case "!!null":
		return nil, nil
	case "!!bool":
		return strconv.ParseBool(node.Value)
	case "!!int", "!!float":
		return json.Number(node.Value), nil
	}
	return node.Value, nil
}

// run runs a case, with a prefix before each of its names.
func (c aCase) run(client *pgmq.Client, prefix string) error {
	ctx, cancel := context.WithTimeout(context.Background(), caseLimit)
	defer cancel()
	r := &runner{ctx: ctx, cancel: cancel, client: client, names: map[string]string{}, saved: map[string]any{}}
	queues := []string{}
	for queue := range c.queues {
		queues = append(queues, queue)
	}
	slices.Sort(queues)
	for _, name := range append(slices.Clone(queues), c.names...) {
		r.names[name] = prefix + name
	}
	defer r.cleanUp()
	for _, queue := range queues {
		with := map[string]any{"queue": queue}
		for key, value := range c.queues[queue].(map[string]any) {
			with[key] = value
		}
		if err := r.step(map[string]any{"do": "create_queue", "with": with}); err != nil {
			return fmt.Errorf("queue %s: %w", queue, err)
		}
	}
	for i, step := range c.steps {
		if err := r.step(step); err != nil {
			return fmt.Errorf("step %d, %v: %w", i+1, step["do"], err)
		}
	}
	return nil
}

// runner is a case while it runs.
type runner struct {
	ctx    context.Context
	cancel context.CancelFunc
	client *pgmq.Client
	// What stands in place of the case's names.
	names map[string]string
	saved map[string]any
	// What is to be closed at the end, and the process id of the server that was ended last.
	closing []func()
	ended   string
}

func (r *runner) cleanUp() {
	r.cancel()
	for _, close := range slices.Backward(r.closing) {
		close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), caseLimit)
	defer cancel()
	for _, name := range r.names {
		// Not all names are queues.
		_ = r.client.DropQueue(ctx, name)
	}
}

func (r *runner) step(step map[string]any) error {
	for key := range step {
		if !slices.Contains([]string{"do", "with", "expect", "error", "save", "client", "deadline"}, key) {
			return fmt.Errorf("unknown key %q of a step", key)
		}
	}
	word, ok := words[step["do"].(string)]
	if !ok {
		return fmt.Errorf("unknown word")
	}
	given, _ := step["with"].(map[string]any)
	resolved, err := r.resolve(map[string]any(given))
	if err != nil {
		return err
	}
	client := r.client
	if step["client"] != nil {
		other, err := r.resolve(step["client"])
		if err != nil {
			return err
		}
		client = native[*pgmq.Client](other)
	}
	ctx := r.ctx
	if step["deadline"] != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, seconds(step["deadline"]))
		defer cancel()
	}
	came, err := r.do(word, &arguments{ctx, r, client, resolved.(map[string]any)})
	if r.ctx.Err() != nil {
		return fmt.Errorf("the case has lasted too long (%v)", err)
	}
	if wanted := step["error"]; wanted != nil {
		failure, ok := failed(err)
		if !ok {
			return fmt.Errorf("an error was expected (%s), and what came is %s, %v", show(wanted), show(came), err)
		}
		return r.compare(wanted, failure)
	}
	if err != nil {
		return err
	}
	if wanted, ok := step["expect"]; ok {
		if err := r.compare(wanted, came); err != nil {
			return err
		}
	}
	if name, ok := step["save"].(string); ok {
		r.saved[name] = came
	}
	return nil
}

// do does a word. What the arguments do not fit panics, and is an error of the case.
func (r *runner) do(word func(*arguments) (any, error), a *arguments) (came any, err error) {
	defer func() {
		if problem := recover(); problem != nil {
			err = fmt.Errorf("%v", problem)
		}
	}()
	came, err = word(a)
	if _, ok := failed(err); !ok {
		for key := range a.with {
			return nil, fmt.Errorf("unknown argument %q", key)
		}
	}
	return came, err
}

func (r *runner) compare(wanted, came any) error {
	resolved, err := r.resolve(wanted)
	if err != nil {
		return err
	}
	if why := fits(resolved, came); why != "" {
		return fmt.Errorf("expected %s, and what came is %s: %s", show(resolved), show(came), why)
	}
	return nil
}

// resolve puts what was saved, the names of this run and repeated values in their places.
func (r *runner) resolve(v any) (any, error) {
	switch v := v.(type) {
	case string:
		if name, ok := r.names[v]; ok {
			return name, nil
		}
		path := strings.Split(strings.TrimPrefix(v, "$"), ".")
		if saved, ok := r.saved[path[0]]; ok && strings.HasPrefix(v, "$") {
			return follow(saved, path[1:])
		}
		return v, nil
	case []any:
		list := []any{}
		for _, item := range v {
			resolved, err := r.resolve(item)
			if err != nil {
				return nil, err
			}
			list = append(list, resolved)
		}
		return list, nil
	case map[string]any:
		if text, ok := v["$text"].([]any); ok {
			return strings.Repeat(text[0].(string), whole(text[1])), nil
		}
		if list, ok := v["$list"].([]any); ok {
			item, err := r.resolve(list[0])
			return slices.Repeat([]any{item}, whole(list[1])), err
		}
		m := map[string]any{}
		for key, item := range v {
			resolved, err := r.resolve(item)
			if err != nil {
				return nil, err
			}
			m[key] = resolved
		}
		return m, nil
	}
	return v, nil
}

func follow(v any, path []string) (any, error) {
	for _, part := range path {
		switch container := v.(type) {
		case map[string]any:
			v = container[part]
		case []any:
			i, err := strconv.Atoi(part)
			if err != nil || i >= len(container) {
				return nil, fmt.Errorf("there is no element %q in %s", part, show(container))
			}
			v = container[i]
		default:
			return nil, fmt.Errorf("there is no %q in %s", part, show(v))
		}
	}
	return v, nil
}
