//! What images carry beside their program: licences, and labels. No image is built here; `tests/cluster` looks into those that were.

use std::{fs, path::Path, process::Command};

use jetwright_e2e::path;
use jetwright_testing::Folder;

const STAGES: [&str; 5] = ["operator", "user-service", "order-service", "payment-simulator", "nats"];

/// What `images/licenses` writes for a kind of image.
fn licenses(folder: &Path, kind: &str) {
    let output = Command::new(path("../images/licenses")).arg(kind).arg(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn images_of_programs_carry_the_licences_of_what_is_linked_into_them() {
    let folder = Folder::new("licenses");
    licenses(folder.path(), "programs");
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(read("LICENSE"), fs::read_to_string(path("../LICENSE")).unwrap());
    let parts = read("THIRD-PARTY.txt");
    let (names, texts) = parts.split_once("\n====").unwrap();
    for linked in ["\ntokio 1.", "\nkube-client ", "\nring ", "\nasync-nats "] {
        assert!(names.contains(linked), "{linked:?} is in none of: {names}");
    }
    for other in ["\nproptest ", "\nserde_derive ", "\njetwright-"] {
        assert!(!names.contains(other), "{other:?} is not linked, or is no part by others");
    }
    assert!(texts.contains("Permission is hereby granted, free of charge"));
    let of_tokio = texts.lines().filter(|line| line.starts_with("Of ") && line.contains("tokio 1.")).count();
    assert!(of_tokio >= 1, "tokio's licence has its text");
}

#[test]
fn the_image_of_nats_carries_the_licences_of_its_modules() {
    let folder = Folder::new("licenses");
    licenses(folder.path(), "nats");
    let parts = fs::read_to_string(folder.path().join("THIRD-PARTY.txt")).unwrap();
    assert!(parts.contains("\ngithub.com/nats-io/nkeys v") && parts.contains("Apache License"), "{parts}");
    assert!(!parts.contains("without a text"), "{parts}");
}

#[test]
fn every_stage_of_the_dockerfile_has_licences_and_says_what_it_is() {
    let dockerfile = fs::read_to_string(path("../images/Dockerfile")).unwrap();
    let stage = |name: &str| {
        let of = dockerfile
            .split("\nFROM ")
            .find(|text| text.lines().next().unwrap().ends_with(&format!(" AS {name}")));
        of.unwrap_or_else(|| panic!("there is no stage {name}")).to_owned()
    };
    let shared = stage("program");
    for name in STAGES {
        let mut text = stage(name);
        if text.starts_with("program ") {
            text.push_str(&shared);
        }
        assert!(text.contains("/licenses"), "{text}");
        for label in ["title", "description", "licenses", "vendor"] {
            assert!(text.contains(&format!("org.opencontainers.image.{label}=")), "{name} has no {label}");
        }
        assert!(text.contains(&format!("title=\"jetwright/{name}\"")), "{text}");
    }
}
