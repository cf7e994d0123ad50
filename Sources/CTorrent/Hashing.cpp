#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Weverything"
#include <openssl/evp.h>
#pragma clang diagnostic pop

#include <memory>

#include "CTorrent.h"

ctorrent_result ctorrent_sha256(uint8_t const* inputs, size_t stride, size_t count,
                                uint8_t* digests) {
    std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> const context(EVP_MD_CTX_new(),
                                                                        &EVP_MD_CTX_free);
    if (!context) return CTORRENT_FAILED;
    for (size_t i = 0; i < count; ++i)
        if (EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) != 1
            || EVP_DigestUpdate(context.get(), inputs + i * stride, stride) != 1
            || EVP_DigestFinal_ex(context.get(), digests + i * 32, nullptr) != 1)
            return CTORRENT_FAILED;
    return CTORRENT_OK;
}
