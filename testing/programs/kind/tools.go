//go:build tools

// Package kind pins kind, which makes clusters for the demo and the end-to-end tests.
package kind

import _ "sigs.k8s.io/kind"
