# What one does every day. `just --list` prints this.

# Formatting, lints of the library, and the pure rules' tests: a minute.
check:
    cargo fmt --check
    cargo clippy --lib -- -D warnings
    cargo test --lib wire:: task:: core::tests
    cargo test --test tidy

# Everything that needs no time of its own. `just test --test pool submit::` runs a part.
test *ARGS:
    cargo test {{ARGS}}

# What must hold before a change lands; `just gate quick` is what every change needs.
gate *STEPS:
    .ci/run {{STEPS}}

# Random tasks, deaths and endings, for so many seconds.
soak SECONDS="600":
    PROCPOOL_SOAK_SECONDS={{SECONDS}} cargo test --release --test faults soak:: -- --nocapture

# Processes that are killed while they use shared objects, for so many seconds each.
torture SECONDS="60":
    PROCPOOL_TORTURE_SECONDS={{SECONDS}} cargo test --release --test sync torture:: -- --nocapture

# One workload, as `just bench W3`.
bench W:
    cargo bench --bench workloads -- {{W}}

# The documentation, as it is published and of what is private.
docs:
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items
