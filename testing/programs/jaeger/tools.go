//go:build tools

// Package jaeger pins the Jaeger that the tests and the demo send traces to.
package jaeger

import _ "github.com/jaegertracing/jaeger/cmd/all-in-one"
