# POSIX make. DESTDIR and PREFIX as usual; ARGS goes to socksd in `make run ARGS=...`
# and to the benchmark in `make bench ARGS=...`, and names the targets in `make fuzz ARGS=...`.
PREFIX = /usr/local
CARGO = cargo
ARGS =

# How long `make fuzz` runs each target.
SECONDS = 30

# Rules to begin with.
EXAMPLES = $(PREFIX)/share/doc/socksd/examples

# Where cargo builds, as it decides itself: the shell expands this.
TARGET = "$${CARGO_TARGET_DIR:-target}"

all:
	$(CARGO) build --release --locked

# Serves on 127.0.0.1:1080 until interrupted.
run: all
	exec $(TARGET)/release/socksd $(ARGS)

# Installs what the tests need (Debian), while what needs nothing but Rust is checked; then runs
# everything there is. Most tests wait most of the time, so many more run at once than there are
# processors.
test:
	@sh tests/setup.sh & setup=$$!; $(MAKE) lint; linted=$$?; wait $$setup && exit $$linted
	$(MAKE) check
	RUST_TEST_THREADS=$${RUST_TEST_THREADS:-16} $(CARGO) test --locked --no-fail-fast

# Measures socksd beside microsocks, danted and 3proxy, those of them that are on PATH.
bench:
	$(CARGO) bench --locked --bench bench -- $(ARGS)

# Feeds octets of all kinds to every decoder and parser, and fails where a claim about one does not
# hold. Fetches the fuzzer from crates.io; what it finds stays below target/fuzz.
fuzz:
	CARGO='$(CARGO)' sh tests/fuzz/run.sh $(SECONDS) $(ARGS)

check: lint
	mandoc -Tlint -Wwarning man/*.[58]

lint:
	$(CARGO) fmt --check
	$(CARGO) fmt --check --manifest-path tests/fuzz/Cargo.toml
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --locked --no-deps --document-private-items

# One binary without shared libraries, target/static/socksd: with musl where rustup has it or can
# get it, else with glibc. It relocates itself, so that no loader has to know the packed form.
static:
	@arch=$$(uname -m); triple=$$arch-unknown-linux-musl; \
	flags='-C link-arg=-Wl,-z,pack-relative-relocs'; \
	if ! { rustup target list --installed | grep -qx "$$triple" \
	    || timeout 120 rustup target add "$$triple"; } 2>/dev/null; then \
	    triple=$$arch-unknown-linux-gnu; flags="$$flags -C target-feature=+crt-static"; \
	fi; set -ex; \
	RUSTFLAGS="$$flags" $(CARGO) build --release --locked --target "$$triple" \
	    --target-dir $(TARGET)/static-build; \
	mkdir -p $(TARGET)/static; \
	cp $(TARGET)/static-build/"$$triple"/release/socksd $(TARGET)/static/socksd.new; \
	mv $(TARGET)/static/socksd.new $(TARGET)/static/socksd

# An installed file is replaced in one step, so a running server keeps its old one.
install: all
	mkdir -p '$(DESTDIR)$(PREFIX)/sbin' '$(DESTDIR)$(PREFIX)/share/man/man5' \
	    '$(DESTDIR)$(PREFIX)/share/man/man8' '$(DESTDIR)$(EXAMPLES)'
	cp $(TARGET)/release/socksd '$(DESTDIR)$(PREFIX)/sbin/socksd.new'
	chmod 755 '$(DESTDIR)$(PREFIX)/sbin/socksd.new'
	mv '$(DESTDIR)$(PREFIX)/sbin/socksd.new' '$(DESTDIR)$(PREFIX)/sbin/socksd'
	cp man/socksd.rules.5 '$(DESTDIR)$(PREFIX)/share/man/man5/socksd.rules.5'
	cp man/socksd.users.5 '$(DESTDIR)$(PREFIX)/share/man/man5/socksd.users.5'
	cp man/socksd.8 '$(DESTDIR)$(PREFIX)/share/man/man8/socksd.8'
	cp man/examples/* '$(DESTDIR)$(EXAMPLES)'
	chmod 644 '$(DESTDIR)$(PREFIX)/share/man/man5/socksd.rules.5' \
	    '$(DESTDIR)$(PREFIX)/share/man/man5/socksd.users.5' \
	    '$(DESTDIR)$(PREFIX)/share/man/man8/socksd.8' '$(DESTDIR)$(EXAMPLES)'/*

uninstall:
	rm -f '$(DESTDIR)$(PREFIX)/sbin/socksd' \
	    '$(DESTDIR)$(PREFIX)/share/man/man5/socksd.rules.5' \
	    '$(DESTDIR)$(PREFIX)/share/man/man5/socksd.users.5' \
	    '$(DESTDIR)$(PREFIX)/share/man/man8/socksd.8'
	cd man/examples && for file in *; do rm -f '$(DESTDIR)$(EXAMPLES)'/"$$file"; done
	rmdir '$(DESTDIR)$(EXAMPLES)' '$(DESTDIR)$(PREFIX)/share/doc/socksd' || true

clean:
	$(CARGO) clean

.PHONY: all run test bench fuzz check lint static install uninstall clean
