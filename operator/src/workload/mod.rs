//! The pods of an EventConsumer: a Deployment, what stands beside it, and the bindings file that names what the pods consume.
//!
//! [`desired`] is what the object declares, [`build`] and [`template`] make the objects of it, [`apply`] brings Kubernetes to them, and
//! [`status`] says what that means; [`pod_security`] judges what the template may. What exists is not compared with what is built:
//! server-side apply does that, and is asked by [`kept`] whether pods run as an older operator made them.

pub mod apply;
pub mod build;
pub mod desired;
pub mod kept;
pub mod pod_security;
pub mod status;
pub mod template;
