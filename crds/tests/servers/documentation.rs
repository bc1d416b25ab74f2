//! The documentation holds: its manifests are taken, and the tests that it names exist.

use crate::support::{defined, path};
use jetwright_crds::Duration;
use jetwright_crds::conditions::Reason;
use jetwright_crds::dead_letter;
use jetwright_crds::environment::{Binding, Bindings, DeadLetters, HANDLER_DEADLINE, Retry};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

#[tokio::test]
async fn every_example_of_the_documentation_is_applied_as_it_stands() {
    let (kubernetes, _) = defined().await;
    let namespace = kubernetes.namespace("examples").await;
    let examples = files(&path("docs/examples"), "yaml");
    assert!(examples.len() >= 2, "{examples:?}");
    for file in examples {
        let apply = ["-n", namespace.name(), "apply", "--warnings-as-errors", "-f", file.to_str().unwrap()];
        let said = kubernetes.kubectl(apply).unwrap();
        assert!(said.contains("jetwright.dev/") && said.contains("created"), "{}: {said}", file.display());
    }
}

#[test]
fn the_examples_stand_in_the_readme_as_they_are() {
    let readme = fs::read_to_string(path("README.md")).unwrap();
    for name in ["stream.yaml", "consumer.yaml"] {
        let example = fs::read_to_string(path("docs/examples").join(name)).unwrap();
        assert!(readme.contains(&example), "README.md does not hold docs/examples/{name}");
    }
}

#[test]
fn the_tests_that_the_guarantees_name_exist() {
    let rooms = ["crds", "operator", "nats", "partitions", "process", "services", "e2e"];
    let sources = rooms.iter().flat_map(|room| files(&path(room), "rs"));
    let code: String = sources.map(|file| fs::read_to_string(file).unwrap()).collect();
    let guarantees = fs::read_to_string(path("docs/guarantees.md")).unwrap();
    let quoted = guarantees.split('`').skip(1).step_by(2);
    // Names of tests are sentences.
    let named: Vec<_> = quoted.filter(|word| word.matches('_').count() >= 3).collect();
    assert!(named.len() > 30, "{named:?}");
    for name in named {
        assert!(code.contains(&format!("fn {name}()")), "docs/guarantees.md names {name}, which is no test");
    }
}

#[test]
fn every_field_of_a_spec_stands_in_the_document_of_its_kind() {
    for definition in jetwright_crds::manifests::definitions().unwrap() {
        let kind = definition.spec.names.singular.unwrap();
        let document = fs::read_to_string(path("docs").join(format!("{kind}.md"))).unwrap();
        let schema = serde_json::to_value(&definition.spec.versions[0].schema).unwrap();
        for field in fields("", &schema["openAPIV3Schema"]["properties"]["spec"]) {
            assert!(document.contains(&format!("| `{field}` |")), "docs/{kind}.md has no row for {field}");
        }
    }
}

/// Paths of the fields in a schema that are not objects of fields of ours themselves.
fn fields(path: &str, schema: &Value) -> Vec<String> {
    let inner =
        schema["properties"].as_object().filter(|_| schema["x-kubernetes-preserve-unknown-fields"].is_null());
    let Some(properties) = inner else { return vec![path.trim_start_matches('.').to_owned()] };
    properties.iter().flat_map(|(name, property)| fields(&format!("{path}.{name}"), property)).collect()
}

#[test]
fn every_reason_stands_in_its_document() {
    let document = fs::read_to_string(path("docs/conditions.md")).unwrap();
    for reason in Reason::all().iter().map(|reason| reason.as_str()) {
        assert!(document.contains(&format!("| `{reason}` |")), "docs/conditions.md has no row for {reason}");
    }
}

#[test]
fn every_flag_of_the_operator_stands_in_its_document() {
    let document = fs::read_to_string(path("docs/operator.md")).unwrap();
    let code = fs::read_to_string(path("operator/src/args.rs")).unwrap();
    let variables: Vec<_> =
        code.split("env = \"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(variables.len() > 10, "{variables:?}");
    for variable in variables {
        assert!(document.contains(&format!("`{variable}`")), "docs/operator.md does not tell of {variable}");
    }
}

#[test]
fn the_bindings_file_in_the_documentation_is_one() {
    let document = fs::read_to_string(path("docs/environment.md")).unwrap();
    let file = document.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let bindings: Bindings = serde_saphyr::from_str(file).unwrap();
    let usual = |stream: &str, consumer: &str| Binding {
        stream: stream.to_owned(),
        consumer: consumer.to_owned(),
        ack_wait: Duration::from_secs(30),
        max_ack_pending: 10_000,
        retry: Retry::default(),
        handler_deadline: HANDLER_DEADLINE,
        partitions: None,
        ordering: None,
        dead_letters: Some(DeadLetters {
            prefix: dead_letter::prefix(stream, consumer),
            max_age: Some(Duration::from_secs(90 * 86_400)),
        }),
    };
    assert_eq!(bindings.bindings["order-fulfilment"], usual("orders", "order-fulfilment"));
    assert_eq!(bindings.bindings["order-users"], usual("users", "order-users"));
}

/// The files with this extension in a folder and below.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap().path();
        if entry.is_dir() {
            found.extend(files(&entry, extension));
        } else if entry.extension().is_some_and(|it| it == extension) {
            found.push(entry);
        }
    }
    found.sort();
    found
}

#[test]
fn every_header_of_a_dead_letter_stands_in_its_document() {
    let document = fs::read_to_string(path("docs/dead-letters.md")).unwrap();
    let code = fs::read_to_string(path("crds/src/dead_letter.rs")).unwrap();
    let headers: Vec<_> =
        code.split(": &str = \"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(headers.len() > 8, "{headers:?}");
    for header in headers {
        assert!(document.contains(&format!("`{header}")), "docs/dead-letters.md does not tell of {header}");
    }
}
