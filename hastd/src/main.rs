//! hastd(8).

fn main() {
    std::process::exit(hastd::run());
}
