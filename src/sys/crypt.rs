//! Password hashes, crypt(5). Not here: comparing them (`crate::auth`) and choosing salts
//! (`crate::hash`).

use std::ffi::{CStr, CString, c_char, c_void};
use std::io;

/// crypt.h `struct crypt_data`: 32,768 octets in libxcrypt, 260 in musl; crypt_r gets the larger.
/// The alignment fits any scalar or vector in it.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct CryptChunk([u8; 64]);
const CRYPT_DATA_CHUNKS: usize = 512;
const _: () = assert!(CRYPT_DATA_CHUNKS * size_of::<CryptChunk>() == 32_768);

#[cfg_attr(target_env = "gnu", link(name = "crypt"))]
unsafe extern "C" {
    // crypt(3)
    fn crypt_r(phrase: *const c_char, setting: *const c_char, data: *mut c_void) -> *mut c_char;
}

/// The hash of `phrase` by the method, cost and salt of `setting`, which may be a whole hash.
/// crypt_r(3).
///
/// # Errors
/// `InvalidInput` where libcrypt lacks the method of `setting`, or either text holds a NUL.
pub fn crypt(phrase: &[u8], setting: &[u8]) -> io::Result<Vec<u8>> {
    let phrase = CString::new(phrase)?;
    let setting = CString::new(setting)?;
    let mut data = vec![CryptChunk([0; 64]); CRYPT_DATA_CHUNKS];
    // SAFETY: both texts end in NUL and outlive the call; `data` is zeroed, aligned, and as large
    // as the largest struct crypt_data.
    let hash = unsafe { crypt_r(phrase.as_ptr(), setting.as_ptr(), data.as_mut_ptr().cast()) };
    if hash.is_null() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: crypt_r returned a NUL-terminated text, in `data` or static, both still alive.
    let hash = unsafe { CStr::from_ptr(hash) }.to_bytes();
    // libcrypt reports failure as "*0" or "*1". musl reads a method it lacks, such as $y$, as a DES
    // salt; that hash does not begin with the method.
    let setting = setting.as_bytes();
    let method = setting.iter().skip(1).position(|&octet| octet == b'$').map_or(0, |at| at + 2);
    if hash.starts_with(b"*") || hash.get(..method) != setting.get(..method) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(hash.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crypt_agrees_with_openssl_passwd() {
        // openssl passwd -6 -salt saltsalt secret
        let sha512 = b"$6$saltsalt$TVLlQcbpFVof5W3Yz4DTP6gRstiNuHwwTt6GLc1E5n0U0aDehy0S5knV8wiO\
                       QSpT0Y77vwPZN.Pq.H91p5hVO1";
        assert_eq!(crypt(b"secret", sha512).unwrap(), sha512);
        assert_ne!(crypt(b"Secret", sha512).unwrap(), sha512);
    }

    #[test]
    fn crypt_refuses_nonsense() {
        assert!(crypt(b"secret", b"$nonsense$").is_err());
        let yescrypt = crypt(b"secret", b"$y$j9T$saltsalt$");
        assert_eq!(yescrypt.is_err(), cfg!(target_env = "musl"), "musl has no yescrypt");
        assert!(crypt(b"sec\0ret", b"$6$saltsalt$").is_err());
    }
}
