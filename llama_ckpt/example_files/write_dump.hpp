// Writing a dump that `llama-ckpt compare` reads: one header, C++17, nothing but the standard library.
//
//     llama_ckpt::DumpWriter dump;
//     dump.token_ids({1, 15043});
//     dump.positions({0, 1});
//     dump.add("blk.0.attn_norm", data, {2, 4096});        // float32, row-major, first axis = token
//     dump.write("theirs.safetensors");                    // llama-ckpt compare theirs.safetensors
//
// `add` copies, so call it where the tensor is made: a buffer that is used again later does not matter.
// ggml writes shapes fastest axis first; give them here slowest first, token before heads. The names stand in
// docs/diagnosis.md.

#ifndef LLAMA_CKPT_WRITE_DUMP_HPP
#define LLAMA_CKPT_WRITE_DUMP_HPP

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace llama_ckpt {

class DumpWriter {
public:
    // What the program says of its run; all optional, and what is absent cannot be checked.
    void token_ids(const std::vector<std::int64_t> & ids) { metadata_["token_ids"] = joined(ids); }
    void positions(const std::vector<std::int64_t> & at) { metadata_["positions"] = joined(at); }
    // Of a run of several calls, rows in their order: dump.of_rows("calls", {0, 0, 0, 1}); also "sequences",
    // "padding" (1 or 0) and "slots". Or keep each call's tensors by themselves: dump.add("call.1.blk.0.q", …).
    void of_rows(const std::string & what, const std::vector<std::int64_t> & numbers) {
        metadata_[what] = joined(numbers);
    }
    void weights_sha256(const std::string & sum) { metadata_["weights_sha256"] = sum; }
    void dtype(const std::string & name) { metadata_["dtype"] = name; }  // "float32", "float16", "bfloat16"
    void note(const std::string & key, const std::string & value) { metadata_[key] = value; }

    // Copy `data`, as many float32 values as `shape` says, under a neutral name.
    void add(const std::string & name, const float * data, const std::vector<std::size_t> & shape) {
        if (tensors_.count(name) != 0) {
            throw std::invalid_argument(name + " was added twice");
        }
        std::size_t count = 1;
        for (std::size_t size : shape) {
            count *= size;
        }
        tensors_[name] = {shape, std::vector<float>(data, data + count)};
    }

    // Write everything; throws std::runtime_error where the file cannot be written.
    void write(const std::string & path) const {
        std::string header = "{\"__metadata__\":{";
        for (const auto & fact : metadata_) {
            header += (header.back() == '{' ? "" : ",") + quoted(fact.first) + ":" + quoted(fact.second);
        }
        header += "}";
        std::size_t place = 0;
        for (const auto & [name, tensor] : tensors_) {
            const std::size_t end = place + tensor.second.size() * sizeof(float);
            header += "," + quoted(name) + ":{\"dtype\":\"F32\",\"shape\":[" + joined(tensor.first);
            header += "],\"data_offsets\":[" + std::to_string(place) + "," + std::to_string(end) + "]}";
            place = end;
        }
        header += "}";
        header.append((8 - header.size() % 8) % 8, ' ');

        std::ofstream file(path, std::ios::binary);
        const std::uint64_t length = header.size();
        for (int byte = 0; byte < 8; ++byte) {
            file.put(static_cast<char>(length >> (8 * byte)));
        }
        file << header;
        for (const auto & entry : tensors_) {
            for (float value : entry.second.second) {
                std::uint32_t bits = 0;
                std::memcpy(&bits, &value, sizeof bits);
                const char little[4] = {static_cast<char>(bits), static_cast<char>(bits >> 8),
                                        static_cast<char>(bits >> 16), static_cast<char>(bits >> 24)};
                file.write(little, sizeof little);
            }
        }
        file.flush();
        if (!file) {
            throw std::runtime_error("cannot write " + path);
        }
    }

private:
    template <typename Number>
    static std::string joined(const std::vector<Number> & numbers) {
        std::string text;
        for (Number number : numbers) {
            text += (text.empty() ? "" : ",") + std::to_string(number);
        }
        return text;
    }

    static std::string quoted(const std::string & text) {
        static const char digits[] = "0123456789abcdef";
        std::string out = "\"";
        for (unsigned char c : text) {
            if (c == '"' || c == '\\') {
                out += '\\';
                out += static_cast<char>(c);
            } else if (c < 0x20) {
                out += std::string("\\u00") + digits[c >> 4] + digits[c & 15];
            } else {
                out += static_cast<char>(c);
            }
        }
        return out + '"';
    }

    std::map<std::string, std::string> metadata_;
    std::map<std::string, std::pair<std::vector<std::size_t>, std::vector<float>>> tensors_;
};

}  // namespace llama_ckpt

#endif
