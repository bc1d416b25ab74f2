//! What one would ask for when a test has failed, printed and kept under `target/test-logs`.

use std::{fs, path::PathBuf, process::Command};

use jetwright_testing::target_folder;

/// What is asked, and whether it is printed as well as kept.
const QUESTIONS: [(&str, bool); 12] = [
    ("get nodes --output=wide", true),
    ("get pods --all-namespaces --output=wide", true),
    ("get eventstreams,eventconsumers --all-namespaces", true),
    ("get events --all-namespaces --sort-by=.lastTimestamp", false),
    ("get eventstreams,eventconsumers --all-namespaces --output=yaml", false),
    (
        "get deployments,statefulsets,jobs,services,poddisruptionbudgets,leases --all-namespaces --output=yaml",
        false,
    ),
    (
        "logs --namespace=jetwright --selector=app.kubernetes.io/name=jetwright --all-containers --prefix --tail=25",
        true,
    ),
    (
        "logs --namespace=jetwright --selector=app.kubernetes.io/name=jetwright --all-containers --prefix --tail=-1",
        false,
    ),
    ("logs --namespace=jetwright jetwright-nats-0 --tail=200", false),
    ("logs --namespace=jetwright jetwright-nats-1 --tail=200", false),
    ("logs --namespace=jetwright jetwright-nats-2 --tail=200", false),
    ("logs --namespace=shop --selector=app.kubernetes.io/managed-by=jetwright --prefix --tail=2000", false),
];

/// Made when it is dropped while the test panics.
pub(super) struct Report {
    test: String,
}

impl Report {
    pub(super) fn of_this_test() -> Self {
        // libtest names a test's thread for the test.
        let test = std::thread::current().name().unwrap_or("no-test").replace("::", ".");
        Self { test }
    }

    fn write(&self) -> std::io::Result<PathBuf> {
        let folder =
            target_folder().join("test-logs").join(format!("cluster-{}-{}", self.test, std::process::id()));
        fs::create_dir_all(&folder)?;
        for (number, (question, printed)) in QUESTIONS.iter().enumerate() {
            let answer = Command::new("kubectl").args(question.split(' ')).output()?;
            let answer = [answer.stdout, answer.stderr].concat();
            fs::write(
                folder.join(format!("{number:02}.log")),
                [format!("kubectl {question}\n").as_bytes(), &answer].concat(),
            )?;
            if *printed {
                eprintln!("--- kubectl {question}\n{}", String::from_utf8_lossy(&answer));
            }
        }
        Ok(folder)
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        match self.write() {
            Ok(folder) => eprintln!("--- the state of the world is in {}", folder.display()),
            Err(error) => eprintln!("--- the state of the world could not be kept: {error}"),
        }
    }
}
