//go:build tools

// Package coredns pins CoreDNS, which gives a cluster its names.
package coredns

import _ "github.com/coredns/coredns"
