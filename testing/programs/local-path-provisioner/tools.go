//go:build tools

// Package provisioner pins the provisioner that gives a cluster its volumes.
package provisioner

import _ "github.com/rancher/local-path-provisioner"
