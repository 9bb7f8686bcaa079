//! How the program is linked: at a fixed address.
//!
//! PostgreSQL starts it once a WAL segment, and a call whose work is done does little else than start. A program that may lie
//! anywhere has fifty thousand pointers to be set first (vtables, places of panics, the tables of the libraries in C), which
//! takes a third of that call's time. Stack, heap and shared libraries lie at random addresses all the same.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bins=-no-pie");
}
