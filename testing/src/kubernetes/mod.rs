//! A Kubernetes API without nodes: etcd and kube-apiserver.

mod control_plane;
mod manifests;
mod namespace;

pub use control_plane::ControlPlane;
pub use namespace::Namespace;
