//! Names of a workload's objects: all come from the EventConsumer's, and are checked here alone. Pure.

use crate::outcome::{Problem, problem};

/// Longest name of a Service, and longest value of a label (a DNS label, RFC 1035). Of the others' names Kubernetes takes 253, and those
/// of ReplicaSets and pods it makes itself.
const LONGEST: usize = 63;

/// Names that Kubernetes takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// Of the Deployment, the Service, the ServiceAccount and the PodDisruptionBudget; and what the label of the pods says.
    pub workload: String,
    /// Of the ConfigMap with the bindings file.
    pub bindings: String,
}

impl Names {
    /// The names of what belongs to an EventConsumer of this name.
    ///
    /// # Errors
    ///
    /// What is wrong with the name; nothing of a workload can be there under it.
    pub fn of(name: &str) -> Result<Self, Problem> {
        let letter_first = name.starts_with(|c: char| c.is_ascii_lowercase());
        let plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if name.len() > LONGEST || !letter_first || !plain || name.ends_with('-') {
            let message = format!(
                "{name} is also to be the name of a Service: make an EventConsumer whose name has at most {LONGEST} of a-z, 0-9 and -, \
                 a letter first and no - at the end"
            );
            return Err(problem("metadata.name", message));
        }
        Ok(Self { workload: name.to_owned(), bindings: format!("{name}-bindings") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_a_service_may_have_is_everybodys() {
        let longest = "a".repeat(63);
        for name in ["a", "order-fulfilment", "v2", &longest] {
            let names = Names { workload: name.to_owned(), bindings: format!("{name}-bindings") };
            assert_eq!(Names::of(name), Ok(names));
        }
    }

    #[test]
    fn any_other_name_is_refused_with_what_it_may_be() {
        for name in ["", "2nd", "-a", "a-", "a.b", "A", "a_b", &"a".repeat(64)] {
            let Problem { field, message } = Names::of(name).unwrap_err();
            assert!(field == "metadata.name" && message.contains("at most 63"), "{name:?}: {message}");
        }
    }
}
