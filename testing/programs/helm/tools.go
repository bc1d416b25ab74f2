//go:build tools

// Package helm pins Helm, which installs the charts.
package helm

import _ "helm.sh/helm/v4/cmd/helm"
