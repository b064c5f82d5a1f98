-- The next members of a held batch, without their payloads.
--
-- ARGV[4], [5]  batch and fence
-- ARGV[6]       the position of the last member of the page before, or empty
-- ARGV[7], [8]  the most members and payload bytes, decimal
-- Returns       'ok', attempts counted by the batch, then for each member: position, id and size (40
--               characters), its record, its outcome or '' (of a done one: 'd' and the attempts before
--               this batch 8) | 'lost'
-- O(log N + n) for n members
local held = held_batch(ARGV[4])
if held.fence ~= ARGV[5] then return { 'lost' } end
check_batch(ARGV[4], held)
local from = ARGV[6] == '' and '-' or '(' .. ARGV[6] .. 'g'
local most, max_bytes = tonumber(ARGV[7]), tonumber(ARGV[8])
local reply, count, bytes, full = { 'ok', decimal(held.prior + held.attempt) }, 0, 0, false
while not full and count < most do
  local page = call('ZRANGE', PREFIX .. 'members:' .. ARGV[4], from, '+', 'BYLEX', 'LIMIT', 0,
    math.min(CHUNK, most - count))
  if #page == 0 then break end
  local ids = {}
  for i, member in ipairs(page) do ids[i] = sub(member, 17, 32) end
  local records = values_of('requests', ids)
  local outcomes = values_of('outcomes:' .. ARGV[4], ids)
  for i, member in ipairs(page) do
    if #member ~= 40 or not records[i] then
      stop(PREFIX .. 'members:' .. ARGV[4] .. ' has another member')
    end
    check_outcome(ARGV[4], ids[i], outcomes[i])
    bytes = bytes + number(sub(member, 33))
    if count > 0 and bytes > max_bytes then full = true; break end
    count = count + 1
    reply[#reply + 1] = member
    reply[#reply + 1] = records[i]
    reply[#reply + 1] = outcomes[i] or ''
  end
  from = '(' .. page[#page]
end
return reply
