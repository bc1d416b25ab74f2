//go:build tools

// Package nats pins the NATS server that the tests run against.
package nats

import _ "github.com/nats-io/nats-server/v2"
