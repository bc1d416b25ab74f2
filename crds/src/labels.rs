//! Labels, annotations and the finalizer that objects in clusters carry. They are never renamed: an operator of another version
//! would no longer find what is there.

/// Label that says who made an object.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`] on everything that the operator makes.
pub const JETWRIGHT: &str = "jetwright";
/// Label with the name of the application that an object belongs to.
pub const APP_NAME: &str = "app.kubernetes.io/name";
/// Label that selects the pods of one workload; its value is the EventConsumer's name.
pub const WORKLOAD: &str = "jetwright.dev/workload";
/// Label of an EventStream that was made for dead letters; its value names the EventStream whose consumers write them.
pub const DEAD_LETTERS_OF: &str = "jetwright.dev/dead-letters-of";
/// Label of what `verify-install` makes.
pub const VERIFY: &str = "jetwright.dev/verify";
/// Annotation of pods that changes with their bindings, so that they are rolled out.
pub const BINDINGS_HASH: &str = "jetwright.dev/bindings-hash";
/// Annotation of an EventStream with which its user accepts that an update loses messages: fields and values as in the spec, such as
/// `retention=Interest, limits.maxAge=7d`. It holds for these values alone.
pub const ACCEPT_DATA_LOSS: &str = "jetwright.dev/accept-data-loss";
/// Finalizer of objects whose deletion deletes something in JetStream.
pub const FINALIZER: &str = "jetwright.dev/cleanup";
