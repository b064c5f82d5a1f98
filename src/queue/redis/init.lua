-- Makes the queue if it does not exist, and answers its salt.
--
-- ARGV[4]  the format that this client writes
-- ARGV[5]  the salt of a new queue, 16 hexadecimal digits
-- Returns  'ok', salt | 'format', the format found
-- O(1)
if not state.format then
  state.format, state.salt, state.last, state.last_batch = ARGV[4], ARGV[5], ZERO, ZERO
elseif state.format ~= ARGV[4] then
  return { 'format', state.format }
end
return answer({ 'ok', state.salt })
