package pgmq

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
)

// Codec turns values into JSON and back. The default one is encoding/json, where numbers in values of type any are
// json.Number, so that they keep their digits, and <, > and & are not escaped.
type Codec interface {
	Marshal(value any) ([]byte, error)
	Unmarshal(data []byte, into any) error
}

// Text is JSON text that is sent exactly as it is, unchecked, where a body or headers are wanted.
type Text string

type standardCodec struct{}

func (standardCodec) Marshal(value any) ([]byte, error) {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buffer.Bytes(), []byte("\n")), nil
}

func (standardCodec) Unmarshal(data []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	if err := decoder.Decode(into); err != nil {
		return err
	}
	if _, err := decoder.Token(); err != io.EOF {
		return fmt.Errorf("more than one JSON value")
	}
	return nil
}

// encode gives the JSON text of a value.
func (c *Client) encode(field string, value any) (string, error) {
	var text string
	switch value := value.(type) {
	case Text:
		text = string(value)
	case json.RawMessage:
		text = string(value)
	default:
		data, err := c.codec.Marshal(value)
		if err != nil {
			return "", refused(codes.InvalidArgument, field, "the value has no JSON form: "+err.Error(), err)
		}
		text = string(data)
	}
	return text, isUTF8(field, text)
}

// isUTF8 refuses what no protobuf message can hold. Over a stream it would be the end of the stream.
func isUTF8(field, text string) error {
	if !utf8.ValidString(text) {
		return refused(codes.InvalidArgument, field, "the text is not UTF-8", nil)
	}
	return nil
}
